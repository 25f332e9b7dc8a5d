"""What prompts learned, and what adapting did to the embeddings of val.

Flows in: runs whose adapters were chosen on val. Flows out: explain.json, and the page explain.html
and explain.md drawn from it. Test stays sealed.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pipelines.console import done, nothing_to_do, say
from pipelines.ranges import Range, check_ranges
from pipelines.runs.outcome import stands, write_outcome
from trainables.errors import ConfigError
from trainables.files import now, sha256_json

if TYPE_CHECKING:
    from pipelines.explain.learned_words import Learned
    from pipelines.explain.subjects import Subject
    from trainables.adapters.base import Adapter
    from trainables.features.split import SplitFeatures
    from trainables.models.backbone import Backbone

FORMAT = "cliptune-explain-1"


@dataclass(frozen=True)
class Args:
    run: tuple[Path, ...]
    """Folders of studies (`cliptune tune`) or training runs (`cliptune train`); the prompts of
    several are compared as seeds of one another."""
    k: Annotated[int, Range(1)] = 5
    """Nearest words shown for each learned vector."""
    draws: Annotated[int, Range(1, 100_000)] = 1000
    """Random vectors that each learned one is compared with."""
    map: tuple[Literal["tsne", "umap"], ...] = field(default=("tsne",))
    """How embeddings are laid out on a plane."""
    out: Path | None = None
    """Folder for the page; `explain` in the first run, where its report links to it."""

    def __post_init__(self) -> None:
        check_ranges(self)


def run(args: Args) -> None:
    if not args.run or not args.map:
        raise ConfigError(f"`--{'map' if args.run else 'run'}` must name at least one, got none.")
    from pipelines.explain.explain_page import write_page
    from pipelines.explain.projection import check_method
    from pipelines.explain.subjects import read_subjects

    for method in args.map:
        check_method(method)
    subjects = read_subjects(args.run)
    choices = [args.k, args.draws, *dict.fromkeys(args.map)]
    inputs = sha256_json([FORMAT, choices, [one.identity() for one in subjects]])
    folder = args.out or args.run[0] / "explain"
    path, page = folder / "explain.json", folder / "explain.html"
    then = f"open {page} in a browser"
    if stands(path, FORMAT, inputs):
        nothing_to_do(page, then)
        return
    found = _explain(args, subjects)
    pages = write_page(found, folder)
    write_outcome(path, found, inputs, pages)
    done([path, *pages, *_linked(args.run[0], page)], then)


def _explain(args: Args, subjects: list[Subject]) -> dict[str, Any]:
    from pipelines.explain.learned_words import seeds
    from pipelines.runs.provenance import hardware, versions
    from trainables.features.features import backbone_of
    from trainables.hardware import default_device

    started = time.monotonic()
    backbone = backbone_of(subjects[0].contest.features, default_device())
    entries, prompts = [], []
    for number, subject in enumerate(subjects, 1):
        say(f"[{number}/{len(subjects)}] {subject.name} of {subject.run} ...")
        entry, learned = _one(args, subject, backbone)
        entries.append(entry)
        prompts += [learned] if learned else []
    return {
        "format": FORMAT,
        "created": now(),
        "k": args.k,
        "draws": args.draws,
        "maps": list(dict.fromkeys(args.map)),
        "backbone": {
            "name": backbone.name,
            "revision": backbone.revision,
            "fingerprint": backbone.fingerprint,
        },
        "entries": entries,
        "stability": seeds(prompts, backbone, args.k),
        "versions": versions(),
        "hardware": hardware(),
        "seconds": time.monotonic() - started,
    }


def _one(args: Args, subject: Subject, backbone: Backbone) -> tuple[dict[str, Any], Learned | None]:
    """Everything about one adapter, and its prompt if it has one."""
    from pipelines.explain.moves import compare, embed
    from pipelines.explain.subjects import captioned_classes, val_of
    from pipelines.runs.contestants import Contestant
    from trainables.training.measure import measure

    contest, task = subject.contest, subject.contest.task
    adapter = subject.contestant.load(backbone, task)
    zero_shot = Contestant("zero_shot").load(backbone, task)
    val = val_of(contest, backbone)
    own = captioned_classes(contest, val) if task == "retrieval" else None
    methods = list(dict.fromkeys(args.map))
    say(f"    {len(val.groups):,} val images before and after, maps by {' and '.join(methods)} ...")
    entry: dict[str, Any] = {
        "run": subject.run.as_posix(),
        "name": subject.name,
        "adapter": adapter.train_config.name,
        "trial": subject.contestant.trial,
        "selected": subject.contestant.selected,
        "task": task,
        "val": {
            "metric": subject.metric,
            "before": measure(zero_shot, val)[subject.metric],
            "after": measure(adapter, val)[subject.metric],
        },
        "embeddings": compare(embed(zero_shot, val), embed(adapter, val), val, own, methods),
        "prompt": None,
    }
    if adapter.prompt is None:
        return entry, None
    entry["prompt"], learned = _learned(args, subject, adapter, val)
    return entry, learned


def _learned(
    args: Args, subject: Subject, adapter: Adapter[Any], val: SplitFeatures
) -> tuple[dict[str, Any], Learned]:
    """The words of a prompt and the worth of its vectors. The adapter's prompt is changed by it."""
    from pipelines.explain.learned_words import Learned, ablate, words
    from trainables.config import to_json

    assert adapter.prompt is not None
    vectors = adapter.prompt.vectors.detach().clone()
    say(f"    {vectors[..., 0].numel()} vectors beside {args.draws:,} random ones ...")
    names = adapter.classes.names if vectors.dim() == 3 and adapter.classes else ()
    found = {
        "shape": list(vectors.shape),
        "classes": list(names),
        "init": to_json(adapter.train_config).get("adapter.init"),
        "measures": words(vectors, adapter.backbone, args.k, args.draws),
        "ablation": ablate(adapter, val, subject.metric, f"ablation of {subject.name}"),
    }
    return found, Learned(subject.run, subject.name, vectors, names)


def _linked(run: Path, page: Path) -> list[Path]:
    """The run's report; one that is there already is made anew, as it links to the page."""
    from pipelines.report.report_page import write_report

    if not (run / "report.html").exists() or page != run / "explain" / "explain.html":
        return []
    paths, changed = write_report(run)
    return paths if changed else []


if __name__ == "__main__":
    from pipelines.cli import stage_main

    stage_main("explain")
