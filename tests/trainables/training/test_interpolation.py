"""The knob on what was learned: each method's rule, the sweep, and what is taken from it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pipelines.runs.contestants import read_contest
from pipelines.sweep import __main__ as sweep
from pipelines.sweep.points import Curve, Point
from pipelines.sweep.sweep_page import render
from pipelines.train import __main__ as train
from tests.contract import TURNING, batch_of, examples, make
from tests.shelf import shelf
from trainables.adapters.base import Adapter
from trainables.errors import CliptuneError
from trainables.features.features import open_features
from trainables.features.few_shot import measured, read_draw
from trainables.files import read_json, read_jsonl, write_hashed
from trainables.models.backbone import Backbone
from trainables.training.checkpoint import (
    adapter_digest,
    live_tensors,
    load_adapter,
    trained_tensors,
)
from trainables.training.interpolation import at, start_of
from trainables.training.measure import measure
from trainables.training.predict import score

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
ZERO = ["lora", "lora both", "lora classes", "projection", "clip_adapter", "tip_adapter"]


def learned(variant: str, backbone: Backbone) -> tuple[Adapter[Any], dict[str, Tensor]]:
    """An adapter whose parameters moved away from where they began, and that place."""
    wide = {"adapter.reduction": 1} if variant == "clip_adapter" else {}  # 4 relus may all be dead
    adapter = make(variant, backbone, precision="fp32", **wide)
    data = examples(backbone) if adapter.classes is not None else None
    start = start_of(adapter.train_config, backbone, data)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapter.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    if adapter.train_config.name == "promptsrc":  # it is seen through its mean over epochs
        adapter.end_epoch(round(0.75 * adapter.train_config.epochs), examples(backbone))
    return adapter.eval(), start


def seen(adapter: Adapter[Any], backbone: Backbone) -> Tensor:
    """What an adapter makes of images and words."""
    data = examples(backbone)
    with torch.no_grad():
        if adapter.classes is not None:
            return score(adapter, data, adapter.classes)
        batch = batch_of(adapter, backbone)
        found = adapter.predict(batch)
        return found.image_embeds @ found.text_embeds.T


def zero_shot(adapter: Adapter[Any], backbone: Backbone) -> Tensor:
    data = examples(backbone)
    images = F.normalize(data.image_embeds, dim=-1)
    if adapter.classes is not None:
        return images @ adapter.classes.text_embeds(backbone).T
    return images @ F.normalize(data.text_embeds(), dim=-1).T


@pytest.mark.parametrize("variant", [*TURNING, "tip_adapter"])
def test_each_adapter_turns_and_comes_back_to_the_bit(variant: str, backbone: Backbone) -> None:
    adapter, start = learned(variant, backbone)
    before, own = adapter_digest(adapter), seen(adapter, backbone)
    with at(adapter, 1.0, start):
        assert adapter_digest(adapter) == before
        assert torch.equal(seen(adapter, backbone), own)
    turned = []
    for share in (0.0, 0.5, 1.5):
        with at(adapter, share, start) as same:
            assert same is adapter
            turned.append(seen(adapter, backbone))
        assert adapter_digest(adapter) == before
    assert not any(torch.equal(a, own) for a in turned)
    assert not torch.equal(turned[0], turned[1])
    assert all(p.grad is None for p in adapter.parameters())


def test_a_failure_inside_gives_the_adapter_back(backbone: Backbone) -> None:
    adapter, start = learned("coop", backbone)
    before = adapter_digest(adapter)
    with pytest.raises(KeyError), at(adapter, 0.5, start):
        raise KeyError
    assert adapter_digest(adapter) == before


@pytest.mark.parametrize("variant", ZERO)
def test_what_can_be_turned_off_is_zero_shot_at_0(variant: str, backbone: Backbone) -> None:
    adapter, start = learned(variant, backbone)
    assert (seen(adapter, backbone) - zero_shot(adapter, backbone)).abs().max() > 1e-3
    with at(adapter, 0.0, start):
        assert torch.allclose(seen(adapter, backbone), zero_shot(adapter, backbone), atol=2e-6)


@pytest.mark.parametrize("variant", ["coop", "soft_prompt deep", "kgcoop", "linear_probe text"])
def test_others_are_where_training_began_at_0(variant: str, backbone: Backbone) -> None:
    adapter, start = learned(variant, backbone)
    with at(adapter, 0.0, start):
        assert torch.equal(
            seen(adapter, backbone),
            seen(make(variant, backbone, precision="fp32").eval(), backbone),
        )


@pytest.mark.parametrize("share", [0.25, 1.25])
def test_prompts_and_weights_lie_on_the_line_through_start_and_end(
    share: float, backbone: Backbone
) -> None:
    for variant in ("coop", "cocoop", "linear_probe", "projection bias"):
        adapter, start = learned(variant, backbone)
        end = {name: tensor.clone() for name, tensor in trained_tensors(adapter).items()}
        with at(adapter, share, start):
            for name, tensor in live_tensors(adapter).items():
                expected = start[name] + share * (end[name] - start[name])
                assert torch.allclose(tensor, expected, atol=1e-6), name


@pytest.mark.parametrize("share", [0.3, 1.25])
def test_loras_update_is_scaled_as_a_whole(share: float, backbone: Backbone) -> None:
    adapter, start = learned("lora", backbone)
    updates = {n: (m.A.weight.clone(), m.B.weight.clone()) for n, m in _matrices(adapter)}
    with at(adapter, share, start):
        for name, module in _matrices(adapter):
            a, b = updates[name]
            assert torch.allclose(module.B.weight @ module.A.weight, share * (b @ a), atol=1e-6)
            assert torch.equal(module.A.weight, a)


def _matrices(adapter: Adapter[Any]) -> Iterator[tuple[str, Any]]:
    return ((n, m) for n, m in adapter.named_modules() if hasattr(m, "A"))


def test_the_learned_temperature_is_on_the_line_too(backbone: Backbone) -> None:
    adapter = make("coop", backbone, **{"temperature.policy": "learned"})
    start = start_of(adapter.train_config, backbone, examples(backbone))
    first = adapter.tau
    with torch.no_grad():
        adapter.objective.log_scale += 1.0
    with at(adapter, 0.5, start):
        assert adapter.tau == pytest.approx(first * 2.718281828**0.5, rel=1e-5)


@pytest.mark.parametrize("share", [-0.1, float("nan"), float("inf")])
def test_a_share_is_a_number_from_0_on(share: float, backbone: Backbone) -> None:
    adapter, start = learned("coop", backbone)
    with pytest.raises(CliptuneError, match="`share` must be a number of at least 0, got"):
        at(adapter, share, start).__enter__()


# -- the stage -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, clip: Path) -> Path:
    base = tmp_path_factory.mktemp("knobs")
    shelf(base, clip)
    for name, adapter in (("lora", "lora"), ("probe", "linear_probe")):
        _train(base, base / name, adapter)
    return base


def _train(base: Path, out: Path, adapter: str) -> None:
    fields = ["epochs=3", "batch_size=8", "optim.lr=0.03", "precision=fp32"]
    fields += ["adapter.tower=text", "adapter.dropout=0"] if adapter == "lora" else []
    values: dict[str, Any] = {"draw": base / "base.json", "retain": (base / "new.json",)}
    train.run(train.Args(base / "features", out, adapter, tuple(fields), **values))


def test_a_sweep_measures_both_goals_at_every_share(
    folder: Path, backbone: Backbone, capsys: pytest.CaptureFixture[str]
) -> None:
    run = folder / "lora"
    sweep.run(sweep.Args(run, shares=(1.0, 0.0, 0.5)))
    found = read_json(run / "sweep.json")
    (entry,) = found["adapters"]
    assert [point["share"] for point in entry["points"]] == [0.0, 0.5, 1.0]
    chosen = read_json(run / "best" / "state.json")["row"]
    at_one, at_none = entry["points"][2], entry["points"][0]
    assert at_one["value"] == chosen["val/accuracy"]
    assert at_one["retained"] == chosen["val/retained"]
    (zero,) = read_jsonl(run / "zero_shot" / "metrics.jsonl")
    assert found["zero_shot"] == {"value": zero["val/accuracy"], "retained": zero["val/retained"]}
    assert at_none | {"share": 0} == {"share": 0, **found["zero_shot"]}
    both = {p["share"]: 2 / (1 / p["value"] + 1 / p["retained"]) for p in entry["points"]}
    assert entry["best"]["share"] == max(both, key=lambda share: both[share])
    said = capsys.readouterr().out
    assert f"lora: best on val at share {entry['best']['share']:g}: val/accuracy" in said
    stamp = (run / "sweep.json").stat().st_mtime_ns
    sweep.run(sweep.Args(run, shares=(0.0, 0.5, 1.0)))
    assert "nothing to do" in capsys.readouterr().out
    assert (run / "sweep.json").stat().st_mtime_ns == stamp
    sweep.run(sweep.Args(run, shares=(0.5,), retain=(folder / "pair.json",)))
    (other,) = read_json(run / "sweep.json")["adapters"]
    val = open_features(folder / "features", "val", backbone)
    draws = read_draw(folder / "base.json"), [read_draw(folder / "pair.json")]
    adapter = load_adapter(run / "best", backbone)
    train_ = read_draw(folder / "base.json").of(
        open_features(folder / "features", "train"), "train"
    )
    with at(adapter, 0.5, start_of(adapter.train_config, backbone, train_)):
        expected = measure(adapter, measured(val, *draws))
    assert other["points"][0]["retained"] == expected["retained"]


def test_where_retention_is_not_applicable_the_metric_alone_chooses(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep.run(sweep.Args(folder / "probe", shares=(0.0, 1.0)))
    (entry,) = read_json(folder / "probe" / "sweep.json")["adapters"]
    assert [point["retained"] for point in entry["points"]] == [None, None]
    assert entry["points"][0]["value"] == pytest.approx(1 / 3)  # weights of 0: all classes tie
    assert entry["best"]["share"] == 1.0
    assert "retained not applicable" in capsys.readouterr().out
    assert "not applicable" in (folder / "probe" / "sweep.html").read_text()


def test_what_is_taken_is_a_run_that_other_stages_read(
    folder: Path, backbone: Backbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "taken"
    sweep.run(sweep.Args(folder / "lora", take=0.5, out=out))
    assert f"cliptune evaluate --run {out}" in capsys.readouterr().out
    contest = read_contest(out, only_best=True)
    one = contest.contestants[1]
    assert (one.name, one.selected, contest.metric) == ("lora at 0.5", True, "accuracy")
    assert one.identity() != read_contest(folder / "lora", False).contestants[1].identity()
    adapter, source = one.load(backbone), load_adapter(folder / "lora" / "best", backbone)
    with at(source, 0.5, trained_tensors(source)):  # LoRA's rule does not ask where it began
        assert trained_tensors(adapter).keys() == trained_tensors(source).keys()
        for name, tensor in trained_tensors(source).items():
            assert torch.equal(trained_tensors(adapter)[name], tensor)
    val = measured(
        open_features(folder / "features", "val", backbone), contest.draw, contest.retain
    )
    assert one.history()["val"] == measure(adapter, val)
    assert "retained" in one.history()["val"]
    sweep.run(sweep.Args(folder / "lora", take=0.5, out=out))
    assert "nothing to do" in capsys.readouterr().out
    _is_no_place_for_others(folder, out)


def _is_no_place_for_others(folder: Path, out: Path) -> None:
    with pytest.raises(CliptuneError, match="holds another run"):
        sweep.run(sweep.Args(folder / "lora", take=0.25, out=out))
    with pytest.raises(CliptuneError, match=r"its `share` is 0\.5"):
        _train(folder, out, "lora")


def test_nothing_is_taken_into_a_folder_of_something_else(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(CliptuneError, match="or something else: give another `--out`"):
        sweep.run(sweep.Args(folder / "lora", take=1.0, out=tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert (tmp_path / "config.json").read_text() == '{"model_type": "clip"}'


def test_taking_all_of_it_changes_no_byte(folder: Path, tmp_path: Path) -> None:
    sweep.run(sweep.Args(folder / "lora", take=1.0, out=tmp_path))
    for name in ("adapter.safetensors", "config.json", "classes.json"):
        path = Path("best", name)
        assert (tmp_path / path).read_bytes() == (folder / "lora" / path).read_bytes()
    made = read_json(tmp_path / "best" / "state.json")
    assert made == read_json(folder / "lora" / "best" / "state.json")


def test_of_a_study_the_chosen_or_the_named_adapter_is_taken(
    folder: Path, tmp_path: Path, backbone: Backbone
) -> None:
    study = tmp_path / "study"
    own = {}
    for number, name in enumerate(("lora", "probe")):
        shutil.copytree(folder / name, study / "trials" / f"{number:04d}")
        adapter = read_json(folder / name / "config.json")["name"]
        own[adapter] = {"trial": number, "adapter": adapter, "path": f"trials/{number:04d}"}
    write_hashed(study / "study.json", read_json(folder / "lora" / "run.json") | {"trials": 2})
    write_hashed(study / "best.json", own["linear_probe"] | {"per_adapter": own})
    sweep.run(sweep.Args(study, shares=(0.5,)))
    names = [entry["name"] for entry in read_json(study / "sweep.json")["adapters"]]
    assert names == ["lora", "linear_probe"]
    for flags, name in (({}, "linear_probe"), ({"adapter": "lora"}, "lora")):
        sweep.run(sweep.Args(study, take=0.5, out=tmp_path / name, **flags))
        assert load_adapter(tmp_path / name / "best", backbone).train_config.name == name
    with pytest.raises(
        CliptuneError, match=r"unknown adapter of the run `loar`. Did you mean `lor"
    ):
        sweep.run(sweep.Args(study, take=0.5, out=tmp_path / "x", adapter="loar"))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"shares": (0.5, -1.0)}, "`--shares` must be at least 0, got -1.0"),
        ({"shares": ()}, "`--shares` must name at least one"),
        ({"take": 0.5}, "`--take` and `--out` go together"),
    ],
)
def test_wrong_flags(folder: Path, flags: dict[str, Any], said: str) -> None:
    with pytest.raises(CliptuneError, match=said):
        sweep.run(sweep.Args(folder / "lora", **flags))


def test_classes_that_training_saw_are_no_retention(folder: Path) -> None:
    with pytest.raises(CliptuneError, match="must hold classes that training never sees"):
        sweep.run(sweep.Args(folder / "lora", retain=(folder / "base.json",)))


def test_the_page_escapes_names_and_equal_inputs_give_equal_bytes() -> None:
    points = [Point(0.0, 0.5, 0.6), Point(1.0, 0.8, 0.3)]
    curves = [Curve("<b>lora</b>", "lora", 3, points)]
    one, two = (render(Path("run"), "accuracy", curves, Point(0.0, 0.5, 0.6)) for _ in range(2))
    assert one == two
    assert "&lt;b&gt;lora" in one
    assert "<b>lora" not in one
    assert one.count("<svg") == 3
    assert "harmonic mean" in one
    alone = [Curve("lora", "lora", None, [Point(0.0, 0.5, None), Point(1.0, 0.8, None)])]
    without = render(Path("run"), "accuracy", alone, Point(0.0, 0.5, None))
    assert without.count("<svg") == 1
    assert "retention was not measured" in without


def test_best_of_equals_is_the_smallest_share_and_a_likelihood_is_a_probability() -> None:
    points = [Point(0.5, 0.6, 0.4), Point(0.25, 0.4, 0.6), Point(1.0, 0.7, 0.1)]
    assert Curve("a", "a", None, points).best("accuracy").share == 0.25
    likely = [Point(0.0, -2.0, 0.5), Point(1.0, -0.5, 0.4)]  # 0.135 and 0.607
    assert Curve("a", "a", None, likely).best("log_likelihood").share == 1.0
