"""Write captions for images and short videos with the best captioner of a run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional

from pipelines.console import say
from pipelines.ranges import Range, check_ranges
from trainables.errors import ConfigError

LEAST = 0.5  # seconds of a part


@dataclass(frozen=True)
class Args:
    files: Positional[tuple[Path, ...]]
    """Images and videos; a folder stands for those in it, at any depth. Or finished embeddings of
    images: files or folders of such, or a store that was made of them."""
    run: Path
    """Folder of a study or of a training run of captioning."""
    seconds: Annotated[float, Range(LEAST)] = 5.0
    """Length of the parts of a longer video that get a caption each. A captioner trained on stills
    sees the middle frame of each."""
    frames: bool = False
    """A folder is one clip: its images are the frames, in the order of their names."""
    json: bool = False
    """Print JSON and nothing else."""

    def __post_init__(self) -> None:
        check_ranges(self)


def run(args: Args) -> None:
    if not args.files:
        raise ConfigError("`cliptune caption` takes files of images or videos, got none.")
    from pipelines.use.captions import caption_files
    from pipelines.use.files import Faults
    from pipelines.use.model import Source, open_model

    source, faults = Source(args.run), Faults()
    rows = caption_files(
        open_model(source, "captioning"), args.files, args.seconds, faults, args.frames
    )
    if args.json:
        say(json.dumps(rows + faults.as_json(), indent=1))
    else:
        for row in rows:
            span = f"  {row['start']:.1f} to {row['end']:.1f} s" if "start" in row else ""
            say(f"{row['path']}{span}  {row['caption']}")
        say(f"next: {source.then}")
    faults.leave()


if __name__ == "__main__":
    from pipelines.cli import stage_main

    stage_main("caption")
