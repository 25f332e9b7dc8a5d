"""Check a source of images or clips and words, and write it as Parquet shards."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pipelines.ranges import Range, check_ranges
from trainables.errors import DataError

if TYPE_CHECKING:
    from pipelines.sources.base import Options

OURS = re.compile(r"manifest\.json|quarantine\.jsonl|(train|val|test|pool)-\d+\.parquet")


@dataclass(frozen=True)
class Args:
    """Where the data is and how strict to be."""

    source: str
    """A file, a folder, or the id of a Hugging Face data set (`owner/name[:config][@revision]`)."""
    out: Path = Path("shards")
    """The folder to write."""
    format: str | None = None
    """karpathy, coco, flickr_token, table, folder, sidecar, text_folder, zhou, webdataset,
    img2dataset, lance or huggingface; found out if clear."""
    images: Path | None = None
    """The folder of the images, where it is not beside the source; of folders, the one that links
    in them lead into."""
    columns: tuple[str, ...] = ()
    """Which columns to read, as in `image=path caption=title`; all others are then left out."""
    split: Literal["source", "val-of-train", "hash", "train", "val", "test"] = "source"
    """The source's splits (80/10/10 by the image's hash where it has none), these with a tenth of
    train by hash as val, always by hash, or one split for all."""
    multi_label: Literal["largest", "drop"] = "largest"
    """COCO's images with objects of several classes: as the largest object's, or left out."""
    max_bad_fraction: Annotated[float, Range(0, 1)] = 0.01
    """Stop when more than this share of the records is bad."""
    on_leak: Literal["error", "drop"] = "error"
    """The same image in two splits: stop, or keep it in test before val before train."""
    rows_per_shard: Annotated[int, Range(1)] = 1000
    """Images a file."""
    dry_run: bool = False
    """Only say what is seen: format, files, splits, the first records. Nothing is written."""
    overwrite: bool = False
    """Replace shards of another source in `out`, once the new ones are complete."""

    def __post_init__(self) -> None:
        check_ranges(self)


def run(args: Args) -> None:
    from pipelines import console
    from pipelines.shards.account import account
    from pipelines.shards.inventory import files_of
    from pipelines.sources.base import Options, parse_columns
    from pipelines.sources.registry import recognised

    options = Options(args.images, parse_columns(args.columns), args.multi_label)
    name, why = recognised(args.source, args.format)
    if args.dry_run:
        _say_what_is_seen(args, name, why, options)
        return
    description, expected = _describe(args, name, options)
    then = f"cliptune encode --shards {console.word(args.out)}"
    if _is_up_to_date(args, description):
        console.nothing_to_do(args.out, then)
        return
    console.say(f"format: {name}, {why}")
    for line in files_of(args.source, name):
        console.say(line)
    manifest = _write(args, name, options, description, expected)
    for split, count in manifest["splits"].items():
        console.say(f"{split:<6}{count['images']:>9,} images{count['captions']:>11,} captions")
    for line in account(manifest["counts"]):
        console.say(line)
    for reason, number in manifest["quarantined"].items():
        console.say(f"quarantined: {reason} ({number:,})")
    for note, number in manifest["notes"].items():
        words = note if " " in note else note.replace("_", " ")  # else the names in it would change
        console.say(f"note: {words} ({number:,})")
    if "train" in manifest["splits"] and "val" not in manifest["splits"]:
        console.say(
            "warning: there is no val, on which `tune` and `train` choose: `--split val-of-train "
            "--overwrite` takes a tenth of train for it, by the image's hash"
        )
    console.done([args.out / "manifest.json", args.out / "quarantine.jsonl"], then)


def _say_what_is_seen(args: Args, name: str, why: str, options: Options) -> None:
    from pipelines import console
    from pipelines.shards.survey import look

    console.say(f"format: {name}, {why}")
    for line in look(args.source, name, options, args.split):
        console.say(line)
    console.say("nothing was written, as `--dry-run` says")
    console.say(f"next: {_typed(args)}")


def _typed(args: Args) -> str:
    """The command without `--dry-run`."""
    from pipelines.typed import typed

    words: list[object] = ["shards"]
    for field in dataclasses.fields(args):
        value, flag = getattr(args, field.name), f"--{field.name.replace('_', '-')}"
        if field.name == "dry_run" or value == field.default:
            continue
        if isinstance(value, bool):
            words.append(flag)
        else:
            words += [flag, *(value if isinstance(value, tuple) else (value,))]
    return typed(*words)


def _describe(args: Args, name: str, options: Options) -> tuple[dict[str, Any], int | None]:
    """What the output depends on (equal descriptions, equal shards), and the number of records."""
    from pipelines.shards.fingerprint import fingerprint

    local = Path(args.source).exists()
    total, records = fingerprint(args.source, name, options)
    return {
        "format": name,
        "path": str(Path(args.source).resolve()) if local else args.source,
        "images": str(args.images.resolve()) if args.images else None,
        "columns": list(args.columns),
        "split": args.split,
        **({"multi_label": args.multi_label} if args.multi_label != "largest" else {}),
        "max_bad_fraction": args.max_bad_fraction,
        "on_leak": args.on_leak,
        "rows_per_shard": args.rows_per_shard,
        "fingerprint": total,
    }, records


def _is_up_to_date(args: Args, description: dict[str, Any]) -> bool:
    """Whether `out` is the outcome of these inputs; whatever else is in it is protected."""
    from pipelines import console
    from trainables.data.shards import ShardSet

    source, out = Path(args.source).resolve(), args.out.resolve()
    if source.is_dir() and out.is_relative_to(source):
        raise DataError(f"`--out` must lie outside `--source`, got `{out}`.")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    names = sorted(path.name for path in out.iterdir())
    others = [name for name in names if not OURS.fullmatch(name)]
    try:
        shards = ShardSet.open(out)  # anything but finished shards is an error
    except DataError:
        if others or "quarantine.jsonl" not in names or len(names) < 2:
            raise
        console.say(f"{out / 'manifest.json'} is damaged: the shards are written again.")
        return False
    old = shards.manifest.get("source", {})
    if old == description:
        for path in shards.damaged():
            console.say(f"{path} is missing or was altered: the shards are written again.")
            return False
        return True
    if not args.overwrite:
        changed = ", ".join(key for key in description if old.get(key) != description[key])
        raise DataError(
            f"`{out}` holds shards of other inputs ({changed} changed). "
            "Choose another `--out`, or replace them with `--overwrite`."
        )
    if others:
        raise DataError(f"`{out}` also holds `{others[0]}`, which `--overwrite` would delete.")
    return False


def _write(
    args: Args, name: str, options: Options, description: dict[str, Any], expected: int | None
) -> dict[str, Any]:
    from itertools import chain, islice

    import pyarrow as pa
    from tqdm import tqdm

    from pipelines import console
    from pipelines.shards.fingerprint import INDEXED
    from pipelines.shards.inventory import SHOWN
    from pipelines.shards.quarantine import Quarantine
    from pipelines.shards.survey import first_lines
    from pipelines.shards.unnamed import UNNAMED, Named
    from pipelines.shards.work import Sharding, checked
    from pipelines.shards.writer import ShardWriter
    from pipelines.sources.registry import SOURCES
    from pipelines.workspace import workspace
    from trainables.data.shards import FORMAT
    from trainables.files import now, write_hashed

    with workspace(args.out, logs=True) as folder:
        try:
            with Quarantine(folder / "quarantine.jsonl", args.max_bad_fraction) as quarantine:
                writer = ShardWriter(folder, args.rows_per_shard)
                sharding = Sharding(writer, quarantine, options, args.on_leak == "drop")
                named = Named()
                records = SOURCES[name](args.source, options)
                if name in INDEXED:
                    records = named.among(records)
                first = list(islice(records, SHOWN))
                for line in first_lines(args.source, name, args.split, first):
                    console.say(line)
                every = checked(chain(first, records), args.split)
                for outcomes in tqdm(every, total=expected, unit=" images"):
                    for record, outcome in outcomes:
                        sharding.take(record, outcome)
                if not sharding.seen:
                    raise DataError(f"`{args.source}` has no records.")
                options.tally.ignored[UNNAMED] += named.others()
                summary = sharding.finish()
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"`{args.source}` to `{folder}` failed: {error}") from error
        manifest = {"format": FORMAT, "source": description, **summary, "created": now()}
        write_hashed(folder / "manifest.json", manifest)
    return manifest


if __name__ == "__main__":
    from pipelines.cli import stage_main

    stage_main("shards")
