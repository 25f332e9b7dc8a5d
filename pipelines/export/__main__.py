"""Hand over the trained adapter in a form that other programs load, and prove that it is the same.

With `--to`, what was written is run in its own runtime on val images and texts, beside the adapter:
the greatest difference and the change of the metric are printed and kept, and an export that is too
far off fails. `--check` repeats that on any machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipelines.console import done, say, word
from pipelines.workspace import workspace
from trainables.errors import ConfigError, DataError

if TYPE_CHECKING:
    from pipelines.runs.contestants import Contest, Contestant

To = Literal["", "peft", "transformers", "open_clip", "onnx", "safetensors", "numpy"]


@dataclass(frozen=True)
class Args:
    run: Path | None = None
    """Folder of a study (its best adapter is taken) or of a single training run."""
    out: Path | None = None
    """Folder to write; it must not exist yet."""
    merged: bool = False
    """LoRA only: a plain CLIPModel with the updates added to its weights."""
    to: To = ""
    """peft: a LoRA in PEFT's format. transformers: a LoRA, or a prompt, in a plain CLIPModel.
    open_clip: a LoRA in its layout. onnx: both towers with prompts and heads inside. safetensors,
    numpy: class weights for cached embeddings. Each is run beside the adapter before it is handed
    over. Default: the adapter's own form, not run."""
    numbers: Literal["fp32", "fp16", "int8"] = "fp32"
    """Of onnx: what its weights are. int8: of matrices, activations dynamically."""
    takes: Literal["pixels", "squares", "pictures"] = "pixels"
    """Of onnx: what the image tower takes. pixels: as the processor gives them, float32. squares:
    uint8 of its own size, normalised inside. pictures: uint8 RGB (B, H, W, 3) of any size."""
    check: Path | None = None
    """Instead: run what `--to` wrote into this folder again, on this machine."""


def run(args: Args) -> None:
    if args.check is not None:
        _check(args, args.check)
        return
    for name, value in (("run", args.run), ("out", args.out)):
        if value is None:
            raise ConfigError(f"`--{name}` must be given; `--check FOLDER` alone needs none.")
    assert args.run is not None
    assert args.out is not None
    if args.to and args.merged:
        raise ConfigError("`--merged` is `--to transformers`: give one of them.")
    if args.to != "onnx" and (args.numbers, args.takes) != ("fp32", "pixels"):
        raise ConfigError("`--numbers` and `--takes` are of `--to onnx`.")
    from pipelines.runs.contestants import read_contest

    if args.out.exists():
        raise DataError(f"`{args.out}` exists already: give another `--out`.")
    contest = read_contest(args.run, only_best=True)
    best = contest.best
    if best.folder is None:
        raise ConfigError(
            f"`{args.run}` has nothing to export: on val no adapter beat `{best.name}`, the "
            "backbone as it is. What each adapter reached is in its best.json."
        )
    if args.to:
        _proved(args, args.out, contest, best)
    else:
        _as_it_is(args, args.run, args.out, contest, best)


def _proved(args: Args, out: Path, contest: Contest, best: Contestant) -> None:
    """Written, run beside the adapter, and only then handed over."""
    from pipelines.export.installed import check_installed
    from pipelines.export.parity import compare, verdict, write_parity
    from pipelines.export.readme import readme
    from pipelines.export.sample import adapter_of, answers_of, sample_of
    from pipelines.export.targets import target_of

    adapter: Any = adapter_of(contest, best)
    backbone = adapter.backbone
    target = target_of(args.to, args.numbers, args.takes)
    sample = sample_of(contest, adapter)
    with workspace(out) as folder:
        wrote = target.write(adapter, folder, sample)
        check_installed(args.to)
        expected = answers_of(adapter, sample)
        about: dict[str, Any] = {
            "to": args.to,
            "numbers": args.numbers,
            "takes": args.takes,
            "tolerance": target.tolerance,
            "tau": adapter.tau,
            "sharpness": adapter.calibration.scale if adapter.calibration else None,
            "adapter": best.name,
            "backbone": {"name": backbone.name, "revision": backbone.revision},
            "mean": list(backbone.preprocess.mean),
            "std": list(backbone.preprocess.std),
            "images": len(sample.right),
        }
        found = compare(about, sample, expected, target.answer(folder, sample, about))
        lines, equal = verdict(about, found)
        for line in lines:
            say(line)
        if not equal:
            raise DataError(
                f"`--to {args.to}` is further from `{best.name}` than its tolerance: "
                "nothing was handed over."
            )
        wrote = [*wrote, *write_parity(folder, about | found, sample, expected)]
        text = readme(folder, about | {"texts": sample.texts}, backbone.embed_dim)
        (folder / "README.md").write_text(text)
        wrote.append(folder / "README.md")
    done(
        _in_place(wrote, folder, out),
        f"{target.loading.format(out)}; anywhere: cliptune export --check {word(out)}",
    )


def _check(args: Args, folder: Path) -> None:
    from pipelines.export.installed import check_installed
    from pipelines.export.parity import compare, read_parity, verdict
    from pipelines.export.targets import target_of

    if args != Args(check=folder):
        raise ConfigError("`--check` stands alone: the folder says what it is.")
    about, sample, expected = read_parity(folder)
    target = target_of(about["to"], about["numbers"], about["takes"])
    check_installed(about["to"])
    answers = target.answer(folder, sample, about)
    lines, equal = verdict(about, compare(about, sample, expected, answers))
    for line in lines:
        say(line)
    if not equal:
        raise DataError(f"`{folder}` computes something else here than where it was exported.")
    say(f"{folder} is `{about['adapter']}` as it was exported.")


def _as_it_is(args: Args, run: Path, out: Path, contest: Contest, best: Contestant) -> None:
    """In the adapter's own form."""
    from pipelines.export.sample import adapter_of
    from trainables.training.exported import loading, write_scores

    adapter: Any = adapter_of(contest, best)
    if args.merged:
        if not hasattr(adapter, "merge"):
            raise ConfigError(f"`--merged` needs a LoRA adapter, got `{best.name}`.")
        with workspace(out) as folder:
            wrote = adapter.merge(folder)
        done(_in_place(wrote, folder, out), f'CLIPModel.from_pretrained("{out}")')
        return
    frozen = adapter.needs(adapter.train_config) == "embeddings"
    with workspace(out) as folder:
        wrote = adapter.export(folder)
        how = [adapter.loading(out)] if wrote else []
        if adapter.classes is not None and (wrote or frozen):
            wrote += write_scores(adapter, folder)
            how.append(loading(out))
        if not wrote:
            raise ConfigError(
                f"`{best.name}` has no format of another library: `--to onnx` makes programs "
                f'of it, and `cliptune.load("{run}")` loads it.'
            )
    done(_in_place(wrote, folder, out), " and ".join(how))


def _in_place(wrote: Sequence[Path], folder: Path, out: Path) -> list[Path]:
    return [out / path.relative_to(folder) for path in wrote]


if __name__ == "__main__":
    from pipelines.cli import stage_main

    stage_main("export")
