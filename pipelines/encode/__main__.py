"""Run the frozen towers once over train and val, and write the feature store."""

from __future__ import annotations

from pathlib import Path

from pipelines.encode.args import Args


def run(args: Args) -> Path:
    """The folder of the store."""
    from pipelines import console

    if args.embeddings is not None:
        from pipelines.encode.embeddings import encode_given
        from pipelines.encode.summary import summary
        from pipelines.encode.summary import then as after

        folder, fresh = encode_given(args)
        for line in summary(folder) if fresh else ():
            console.say(line)
        then = after(folder)
    else:
        from pipelines.encode.store import encode

        folder, fresh = encode(args)
        then = f"cliptune tune --features {console.word(folder)}"
    if fresh:
        console.done(wrote=[folder], then=then)
    else:
        console.nothing_to_do(folder, then)
    return folder


if __name__ == "__main__":
    from pipelines.cli import stage_main

    stage_main("encode")
