"""What a precision is on a machine, who refuses it, and that scores stay in fp32 on any."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipelines.encode import precision, store, towers
from pipelines.encode.args import Args
from pipelines.train import __main__ as train
from pipelines.tune import __main__ as tune
from tests.tiny import tiny_shards
from trainables import hardware
from trainables.adapters.base import product
from trainables.adapters.registry import build, make_config
from trainables.config import LossConfig, TemperatureConfig
from trainables.data.shards import ShardSet
from trainables.errors import ConfigError, DataError
from trainables.features.features import backbone_of, embed_split, open_features
from trainables.features.manifest import features_key, precision_of
from trainables.files import read_json
from trainables.hardware import autocast, bf16_pays, check_precision, full, of_store, resolved
from trainables.losses.losses import Objective
from trainables.metrics.retrieval import ranks
from trainables.models import language_model
from trainables.models.backbone import Backbone
from trainables.models.load import load_backbone
from trainables.training.checkpoint import load_adapter

REFUSAL = "must be auto or fp32 here: this CPU has neither amx_bf16 nor avx512_bf16"
MATMUL = torch.backends.cuda.matmul


@pytest.fixture
def old_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU without bf16 of its own."""
    (tmp_path / "cpuinfo").write_text("flags : fpu sse avx2 fma\n")
    monkeypatch.setattr(hardware, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    hardware._tell_emulated.cache_clear()


@pytest.fixture
def new_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)


@pytest.fixture
def old_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_shards(tmp_path_factory.mktemp("shards"))


def test_auto_looks_at_the_cpu(bf16_cpu: None) -> None:
    assert bf16_pays("cpu")
    assert resolved("auto", "cpu") == "bf16"
    assert of_store("auto", "cpu") == "fp32"  # of a store, only if asked for
    assert of_store("bf16", "cpu") == "bf16"


def test_auto_leaves_bf16_without_a_matrix_unit_to_who_asks_for_it(bf16_cpu: None) -> None:
    """Computed by AVX-512, it takes longer than fp32."""
    hardware.CPUINFO.write_text("flags : fpu avx512f avx512_bf16\n")
    assert not bf16_pays("cpu")
    assert resolved("auto", "cpu") == "fp32"
    assert resolved("bf16", "cpu") == of_store("bf16", "cpu") == "bf16"
    check_precision("bf16", "cpu", "precision")


def test_auto_on_a_cpu_without_bf16(old_cpu: None) -> None:
    assert resolved("auto", "cpu") == of_store("auto", "cpu") == "fp32"


def test_auto_on_a_gpu_with_bf16(new_gpu: None) -> None:
    assert resolved("auto", "cuda") == of_store("auto", "cuda") == "bf16"
    assert resolved("fp32", "cuda") == of_store("fp32", "cuda") == "fp32"


def test_auto_on_a_gpu_without_bf16(old_gpu: None) -> None:
    assert resolved("auto", "cuda") == of_store("auto", "cuda") == "fp32"
    with pytest.raises(ConfigError, match="this GPU has no bf16 of its own, got 'bf16'"):
        check_precision("bf16", "cuda", "precision")


@pytest.mark.parametrize("learns", [True, False])
def test_attention_that_is_trained_in_bf16_has_the_plain_kernel(
    learns: bool, bf16_cpu: None
) -> None:
    """The fused one's backward is slow there; its forward is not."""
    heads = torch.ones(1, 2, 3, 8, requires_grad=True)
    watch = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
    with torch.set_grad_enabled(learns), autocast("bf16", "cpu"), watch as seen:
        torch.nn.functional.scaled_dot_product_attention(heads, heads, heads)
    names = {event.name for event in seen.events()}
    assert ("aten::_scaled_dot_product_flash_attention_for_cpu" in names) is not learns


# -- bf16 where there is none ---------------------------------------------------------------------


def test_training_refuses_it_at_the_door(old_cpu: None, features: Path, tmp_path: Path) -> None:
    out, fields = tmp_path / "run", ("precision=bf16",)
    with pytest.raises(ConfigError, match=f"`precision` {REFUSAL}, and emulates bf16, got 'bf16'"):
        train.run(train.Args(features, out, set=fields))
    with pytest.raises(ConfigError, match=f"`precision` {REFUSAL}"):
        tune.run(tune.Args(features, out, set=fields))
    assert not out.exists()


def test_a_worker_looks_for_itself(
    old_cpu: None, features: Path, backbone: Backbone, tmp_path: Path
) -> None:
    from tests.trainables.training.test_loop import start

    with pytest.raises(ConfigError, match=f"`precision` {REFUSAL}"):
        start(tmp_path / "run", backbone, features, precision="bf16")
    start(tmp_path / "auto", backbone, features, precision="auto")
    start(tmp_path / "measured", backbone, features, "zero_shot", precision="bf16").advance()


def test_encode_refuses_it_before_any_work(
    old_cpu: None, clip: Path, shards: Path, tmp_path: Path
) -> None:
    out = tmp_path / "features"
    with pytest.raises(ConfigError, match=f"`--precision` {REFUSAL}"):
        store.encode(Args(shards, str(clip), out=out, precision="bf16"))
    assert not out.exists()
    with pytest.raises(ConfigError, match=f"`--precision` {REFUSAL}"):  # on another machine
        towers.Tower(str(clip), None, "", "bf16", 1)


def test_what_was_made_elsewhere_is_measured_and_told_once(
    old_cpu: None, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        with autocast("bf16", "cpu"):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    assert capsys.readouterr().err == (
        "warning: what was made in bf16 is computed in bf16 here too, slowly: this CPU has neither "
        "amx_bf16 nor avx512_bf16, and emulates bf16\n"
    )


# -- stores --------------------------------------------------------------------------------------


def test_a_store_in_bf16_is_another_one_and_says_so(
    bf16_cpu: None, clip: Path, shards: Path, tmp_path: Path
) -> None:
    folders = {
        how: store.encode(
            Args(shards, str(clip), out=tmp_path, views=1, pixels=True, precision=how)
        )[0]
        for how in ("auto", "fp32", "bf16")
    }
    assert folders["auto"] == folders["fp32"] != folders["bf16"]
    assert "precision" not in read_json(folders["fp32"] / "manifest.json")
    assert precision_of(folders["fp32"]) == "fp32"
    assert precision_of(folders["bf16"]) == "bf16"
    plain, ours = (backbone_of(folders[how]) for how in ("fp32", "bf16"))
    assert (plain.precision, ours.precision) == ("fp32", "bf16")
    with pytest.raises(DataError, match="was computed in bf16, the backbone given is in fp32"):
        open_features(folders["bf16"], "val", plain)
    rows = torch.arange(4)

    def made(folder: Path, own: Backbone) -> list[Tensor]:
        """Of everything that is frozen, what is stored and what is made on first use."""
        data = open_features(folder, "train", own)
        return [
            data.embeds(rows),
            data.text_embeds(),
            data.embeds(rows, 1),
            data.hidden(rows, 1, 1),
        ]

    every = made(folders["fp32"], plain), made(folders["bf16"], ours)
    for one, other in zip(*every, strict=True):
        assert one.dtype == other.dtype == torch.float32
        assert not torch.equal(one, other)
        torch.testing.assert_close(one, other, rtol=0.1, atol=0.1)
    lazy = {path.name for path in (folders["bf16"] / "lazy").iterdir()}
    assert {"text-train.safetensors", "view-0001-train.safetensors"} <= lazy


def test_test_images_are_embedded_as_the_store_is(
    bf16_cpu: None, clip: Path, shards: Path, tmp_path: Path
) -> None:
    folder, _ = store.encode(Args(shards, str(clip), out=tmp_path, precision="bf16"))
    stored = open_features(folder, "val")
    again = embed_split(backbone_of(folder), ShardSet.open(shards), "val", batch_size=4)
    torch.testing.assert_close(again.image_embeds, stored.image_embeds, rtol=1e-5, atol=1e-6)
    other = embed_split(load_backbone(str(clip)), ShardSet.open(shards), "val")
    assert not torch.allclose(other.image_embeds, stored.image_embeds, rtol=1e-5, atol=1e-6)


def test_the_key_of_a_store_in_fp32_is_what_it_was(
    clip: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[Any] = []
    monkeypatch.setattr(
        "trainables.features.manifest.sha256_json", lambda x: hashed.append(x) or ""
    )
    for how in ("fp32", "bf16"):
        features_key(load_backbone(str(clip), precision=how), ShardSet.open(shards))  # type: ignore[arg-type]
    assert "precision" not in hashed[0]
    assert hashed[1] == {**hashed[0], "precision": "bf16"}


def test_in_a_cluster_the_place_of_a_tower_is_asked(
    old_cpu: None, new_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head, where the command runs, has no bf16; the towers' GPUs have."""
    import ray

    place: dict[str, float] = {}

    class Task:
        def __init__(self, function: Any) -> None:
            self.remote = function

    def remote(**resources: float) -> Any:
        place.update(resources)
        return Task

    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setattr(precision, "connect", lambda: None)
    taken = towers.Resources(towers=2, tower_cpus=4, tower_gpus=1, threads=8, task_cpus=0.9)
    monkeypatch.setattr(towers.Resources, "take", lambda *_: taken)
    monkeypatch.setattr(ray, "remote", remote)
    monkeypatch.setattr(ray, "get", lambda found: found)
    monkeypatch.setattr(precision, "default_device", lambda: "cuda")
    assert precision.settle("auto", "auto", "auto", 1) == "bf16"
    assert place == {"num_cpus": 4, "num_gpus": 1}
    monkeypatch.setattr(precision, "default_device", lambda: "cpu")
    assert precision.settle("auto", "auto", "auto", 1) == "fp32"
    with pytest.raises(ConfigError, match=f"`--precision` {REFUSAL}"):
        precision.settle("bf16", "auto", "auto", 1)
    place.clear()
    without = replace(taken, tower_gpus=0)
    monkeypatch.setattr(towers.Resources, "take", lambda *_: without)
    assert precision.settle("auto", "auto", "auto", 1) == "fp32"
    assert not place  # of a CPU, the answer is known


# -- scores --------------------------------------------------------------------------------------


@pytest.fixture
def multiplied(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """How a GPU would multiply each matrix product of fp32, and whether in autocast."""
    seen: list[tuple[str, bool]] = []
    plain = Tensor.__matmul__

    def recorded(one: Tensor, other: Tensor) -> Tensor:
        seen.append((MATMUL.fp32_precision, torch.is_autocast_enabled("cpu")))
        return plain(one, other)

    monkeypatch.setattr(Tensor, "__matmul__", recorded)
    return seen


def test_tf32_is_on_unless_fp32_is_asked_for_by_name(old_gpu: None) -> None:
    before = MATMUL.fp32_precision
    with autocast("auto", "cuda"):
        assert MATMUL.fp32_precision == torch.backends.cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]
        with autocast("fp32", "cuda"):
            assert MATMUL.fp32_precision == "ieee"
            assert torch.backends.cudnn.conv.fp32_precision == "ieee"  # type: ignore[attr-defined]
        with full("cuda"):
            assert MATMUL.fp32_precision == "ieee"
        assert MATMUL.fp32_precision == "tf32"
    assert MATMUL.fp32_precision == before


def test_scores_are_multiplied_in_fp32(
    backbone: Backbone, old_gpu: None, multiplied: list[tuple[str, bool]]
) -> None:
    rows = torch.randn(4, 8)
    groups = torch.arange(4)
    objective = Objective(LossConfig(), TemperatureConfig(), backbone)
    with autocast("auto", "cuda"), torch.autocast("cpu", dtype=torch.bfloat16):
        product(rows, rows.T)
        objective(rows, rows, groups, groups, torch.tensor(0.0))
        ranks(rows, rows, groups, groups)
    assert len(multiplied) >= 3
    assert set(multiplied) == {("ieee", False)}


@pytest.mark.parametrize(("then", "now"), [("amx_bf16", "avx2"), ("avx2", "amx_bf16")])
def test_a_run_is_used_in_the_precision_it_was_chosen_in(
    then: str, now: str, backbone: Backbone, features: Path, bf16_cpu: None, tmp_path: Path
) -> None:
    """`auto` is something else on another machine."""
    from tests.trainables.training.test_loop import start

    def machine(flag: str) -> str:
        hardware.CPUINFO = tmp_path / f"of {flag}"
        hardware.CPUINFO.write_text(f"flags : fpu {flag}\n")
        return hardware.resolved("auto", "cpu")

    trained_in = machine(then)
    start(tmp_path / "run", backbone, features, precision="auto").advance()
    assert load_adapter(tmp_path / "run" / "best", backbone).train_config.precision == "auto"
    assert machine(now) != trained_in
    assert load_adapter(tmp_path / "run" / "best", backbone).train_config.precision == trained_in


# -- language models -----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["frozen", "lora", "full"])
@pytest.mark.parametrize("how", ["fp32", "bf16"])
def test_weights_of_a_language_model(
    mode: str, how: str, backbone: Backbone, tmp_path: Path, bf16_cpu: None
) -> None:
    """Frozen ones are as wide as what is computed; what is trained is fp32, and so are logits."""
    settings = {"task": "captioning", "precision": how, "adapter.lm_mode": mode}
    adapter: Any = build(make_config("prefix_captioner", settings), backbone).eval()
    half = how == "bf16" and mode == "frozen"
    assert adapter.lm.dtype == (torch.bfloat16 if half else torch.float32)
    assert all(p.dtype == torch.float32 for p in adapter.parameters())
    embeds = torch.randn(3, backbone.embed_dim)
    with torch.no_grad(), autocast(how, "cpu"):  # type: ignore[arg-type]
        logits, cache = adapter.lm.after(inputs_embeds=adapter.prefix(embeds, None))
    assert logits.dtype == torch.float32
    computed = torch.bfloat16 if how == "bf16" else torch.float32
    assert cache.layers[0].keys.dtype == computed
    if mode == "frozen":  # what is exported says as much as what was loaded
        adapter.lm.save(tmp_path)
        theirs = language_model.load_language_model(str(tmp_path)).model.state_dict()
        ours = language_model.load_language_model("tiny").model.state_dict()
        assert all(torch.equal(theirs[name], value) for name, value in ours.items())
