"""Draw a few labelled images a class from shards: one classification task, as a list of images."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pipelines.ranges import Range, check_ranges
from trainables.errors import DataError

if TYPE_CHECKING:
    from trainables.data.shards import ShardSet
    from trainables.features.few_shot import Draw


@dataclass(frozen=True)
class Args:
    """Which images, and how many."""

    shards: Path
    """The folder that `cliptune shards` wrote, of images with classes; or a store that `encode
    --embeddings` wrote."""
    shots: Annotated[int, Range(0)] = 16
    """Images a class in train, and at most 4 in val. 0: all there are."""
    seed: Annotated[int, Range(0)] = 1
    """Of the draw: another seed, other images."""
    part: Literal["all", "base", "new"] = "all"
    """All classes, or the first or second half of them (base-to-new generalisation)."""
    words: str = "default"
    """Names and template for the prompts, and texts about each class, of which the mean is taken: a
    shipped list such as eurosat, or a JSON file."""
    index: Path | None = None
    """Take the images that this index JSON lists (`shot_16-seed_1.json` of cross-modal
    adaptation) and draw none."""
    missing: Literal["error", "drop"] = "error"
    """An image of the index that the shards do not have (it was bad, or a copy): stop, or leave it
    out, with a shot less of its class."""
    fewer: bool = False
    """Where a class has fewer images than shots, take what there is."""
    dataset: str | None = None
    """The data's name in tables; the shards folder's own where not given."""
    out: Path | None = None
    """The file to write; draws/<dataset>-<shots>-<seed>.json where not given."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.missing == "drop" and self.index is None:
            raise DataError("`--missing drop` is for the images of an `--index`, got none.")


def run(args: Args) -> Path:
    """The file of the draw."""
    from pipelines import console
    from trainables.data.shards import ShardSet
    from trainables.features.few_shot import read_draw, write_draw

    shards = ShardSet.open(args.shards)
    draw = _draw(args, shards)
    half = "" if draw.part == "all" else f"-{draw.part}"
    out = args.out or Path("draws") / f"{draw.dataset}-{draw.shots}-{draw.seed}{half}.json"
    then = f"cliptune tune --features features/<key> --draw {console.word(out)} --adapter coop"
    if shards.embedded:
        store = console.word(args.shards)
        then = f"cliptune tune --features {store} --draw {console.word(out)} --adapter auto"
    if out.exists():
        _refuse_another(out, read_draw(out), draw)
        console.nothing_to_do(out, then)
        return out
    write_draw(out, draw)
    console.say(f"{len(draw.names)} classes, such as: {draw.template.format(draw.names[0])}")
    for split, members in (("train", draw.train), ("val", draw.val)):
        console.say(f"{split:<6}{len(members):>9,} images")
    if draw.missing:
        console.say(
            f"left out: {len(draw.missing):,} images of `{args.index}` that the shards do not "
            f"have, such as {draw.missing[0]}; all are named in `{out}`"
        )
    console.done([out], then)
    return out


def _draw(args: Args, shards: ShardSet) -> Draw:
    from pipelines import console
    from pipelines.draw.class_names import read_words
    from pipelines.draw.index_json import index_draw
    from pipelines.draw.labelled import read_labelled
    from pipelines.draw.make import Task, make_draw

    words = read_words(args.words).fitted(shards.templates)
    dataset = args.dataset or shards.name
    task = Task(dataset, args.shots, args.seed, args.part, words, args.fewer)
    data = read_labelled(shards)
    if args.index is not None:
        return index_draw(args.index, data, task, args.missing == "drop")
    for note in data.notes():
        console.say(note)
    return make_draw(data, task)


def _refuse_another(out: Path, old: Draw, new: Draw) -> None:
    if old.key != new.key:
        names = [field.name for field in dataclasses.fields(new)]
        changed = ", ".join(n for n in names if getattr(old, n) != getattr(new, n))
        raise DataError(f"`{out}` holds another draw ({changed} differ); choose another `--out`.")


if __name__ == "__main__":
    from pipelines.cli import stage_main

    stage_main("draw")
