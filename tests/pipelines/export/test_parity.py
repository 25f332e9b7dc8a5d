"""What is handed over computes what the adapter computes: run in its own runtime, on val."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch.nn import functional as F
from transformers import AutoTokenizer, CLIPModel

import cliptune
from pipelines.cli import stage_main
from pipelines.export import onnx_files, onnx_run, targets, to_open_clip
from pipelines.export.installed import NEEDED
from pipelines.export.parity import compare, read_parity
from pipelines.export.sample import Answers, Sample
from tests.pipelines.train.test_train import fails
from tests.things import things
from tests.tiny import tiny_shards
from trainables.models.backbone import Backbone
from trainables.models.image_tower import embed_images
from trainables.models.load import load_backbone
from trainables.models.padded import PaddedText
from trainables.models.text_plan import Place, Prompt
from trainables.models.text_tower import embed_text

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing.*:FutureWarning", "ignore::DeprecationWarning"
)
RETRIEVAL: dict[str, dict[str, Any]] = {
    "soft_prompt": {"adapter.n_ctx": 4},
    "soft_prompt deep": {"adapter.n_ctx": 4, "adapter.depth": 1, "adapter.place": "before_eot"},
    "lora": {"optim.lr": 1e-2},
    "projection": {},
}
CLASSES: dict[str, dict[str, Any]] = {
    "coop": {"adapter.n_ctx": 4},
    "coop middle": {"adapter.n_ctx": 4, "adapter.class_position": "middle"},
    "maple": {},
    "lora both": {"optim.lr": 1e-2},
    "lora vision": {"adapter.tower": "vision", "optim.lr": 1e-2},
    "kernel_ridge": {},
    "linear_probe": {"epochs": 3},
    "tip_adapter": {},
    "cocoop": {},
}
# A program takes seconds, so each way through the towers becomes one once: LoRA in the test of
# bf16, a cache of images in that of pictures. What programs are made of is compared for every
# adapter in test_pairs.py.
ONNX = ["soft_prompt", "soft_prompt deep", "projection", "maple", "kernel_ridge"]
MERGED = ["soft_prompt", "lora", "coop", "lora both", "lora vision"]
LINEAR = ["coop", "coop middle", "linear_probe"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, clip: Path) -> Path:
    """A run of each, on captions or on four classes."""
    home = tmp_path_factory.mktemp("parity")
    tiny_shards(home / "shards")
    things(home / "things")
    store = cliptune.encode(home / "shards", backbone=clip, out=home / "captions")
    labelled = cliptune.encode(home / "things", backbone=clip, out=home / "labelled", pixels=True)
    draw = cliptune.draw(home / "things", shots=2, out=home / "draw.json")
    for name, own in RETRIEVAL.items():
        fields = {"epochs": 2, "batch_size": 8, "precision": "fp32"} | own
        cliptune.train(store, home / name, adapter=name.split()[0], set=fields)
    for name, own in CLASSES.items():
        fields = {"precision": "fp32"} | own
        if name not in ("kernel_ridge", "linear_probe"):
            fields = {"epochs": 1} | fields
        cliptune.train(labelled, home / name, adapter=name.split()[0], draw=draw, set=fields)
    return home


def export(home: Path, name: str, out: Path, **how: Any) -> dict[str, Any]:
    """What parity.json says."""
    cliptune.export(home / name, out, **how)
    found: dict[str, Any] = json.loads((out / "parity.json").read_text())
    assert max(found["greatest"].values()) <= found["tolerance"]
    assert found["here"] == found["there"]
    if how["to"] != "open_clip":
        read_and_run(out)
    return found


def read_and_run(out: Path) -> None:
    """The lines of README.md give, in the folder alone, what the adapter gave."""
    text = (out / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.+?)```", text, re.DOTALL)
    made: dict[str, Any] = {}
    with contextlib.chdir(out):
        exec(code, made)
    wanted = load_file(out / "parity.safetensors")
    names = {"image_embeds": "images", "text_embeds": "texts", "scores": "scores"}
    checked = [
        name for name in names if name in made and not ("scores" in made and name != "scores")
    ]
    assert checked, text
    for name in checked:
        found = torch.as_tensor(made[name]).detach()
        found = found if name == "scores" else F.normalize(found, dim=-1)
        expected = wanted[f"expected.{names[name]}"][: len(found)]
        torch.testing.assert_close(
            found, expected, rtol=1e-3, atol=1e-1 if name == "scores" else 1e-3
        )


@pytest.fixture(scope="module")
def programs(home: Path) -> Path:
    """Folders of ONNX, made when a test first asks for one."""
    return home / "onnx"


def onnx(home: Path, programs: Path, name: str) -> Path:
    if not (programs / name).is_dir():
        export(home, name, programs / name, to="onnx")
    return programs / name


@pytest.mark.parametrize("name", ONNX)
def test_onnx_computes_what_the_adapter_does(name: str, home: Path, programs: Path) -> None:
    out = onnx(home, programs, name)
    found = json.loads((out / "parity.json").read_text())
    wanted = {"images", "texts"} if name in RETRIEVAL else {"scores"}
    assert wanted <= found["greatest"].keys()
    assert found["tolerance"] == 1e-4
    assert (out / "visual/model.onnx").is_file()
    assert cliptune.export(check=out) == out


@pytest.mark.parametrize(
    ("name", "forms"), [("lora both", ("onnx", "transformers")), ("coop", ("numpy",))]
)
def test_a_run_in_bf16_is_handed_over_in_fp32(
    name: str, forms: tuple[str, ...], home: Path, clip: Path, tmp_path: Path, bf16_cpu: None
) -> None:
    """As a GPU, or a CPU with AMX, trains it by default; the store is in bf16 too."""
    run, how = tmp_path / name, {"pixels": True, "precision": "bf16"}
    store = cliptune.encode(home / "things", backbone=clip, out=tmp_path / "store", **how)
    fields = CLASSES[name] | {"epochs": 1}
    cliptune.train(store, run, adapter=name[:4], draw=home / "draw.json", set=fields)
    assert json.loads((run / "best/manifest.json").read_text())["precision"] == "bf16"
    assert json.loads((store / "manifest.json").read_text())["precision"] == "bf16"
    for to in forms:
        export(tmp_path, name, tmp_path / to, to=to)


@pytest.mark.parametrize("name", MERGED)
def test_a_plain_model_of_transformers_does_too(name: str, home: Path, tmp_path: Path) -> None:
    found = export(home, name, tmp_path / "out", to="transformers")
    assert found["greatest"].keys() == {"images", "texts"}


def test_a_prompt_is_in_the_tokenizer(home: Path, tmp_path: Path) -> None:
    """Whoever loads the folder types words alone."""
    export(home, "soft_prompt", tmp_path / "out", to="transformers")
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path / "out")
    model: Any = CLIPModel.from_pretrained(tmp_path / "out").eval()
    texts = ["a red dog", "a blue cat on a table " * 30]
    ids = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids[0])[1:5] == [f"<|prompt_{n}|>" for n in range(4)]
    with torch.no_grad():
        found = F.normalize(model.get_text_features(input_ids=ids).pooler_output, dim=-1)
    wanted = torch.from_numpy(cliptune.load(home / "soft_prompt").embed_text(texts))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["lora", "lora both"])
def test_peft_has_a_lora_as_it_is(name: str, home: Path, tmp_path: Path) -> None:
    assert export(home, name, tmp_path / "out", to="peft")["greatest"].keys() == {"images", "texts"}


@pytest.mark.parametrize("name", ["lora", "lora both"])
def test_open_clips_layout_holds_the_merged_weights(
    name: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read by our own reader of it; open_clip itself answers in the next test."""

    def answer(folder: Path, sample: Sample, about: Any) -> Answers:
        backbone = load_backbone(str(folder))
        tokens = backbone.tokenize(sample.texts)[0]
        assert sample.pixels is not None
        with torch.no_grad():
            images = embed_images(backbone, sample.pixels)
            texts = embed_text(backbone, tokens)
        return {"images": F.normalize(images, dim=-1), "texts": F.normalize(texts, dim=-1)}

    monkeypatch.setattr(to_open_clip, "answer", answer)
    monkeypatch.delitem(NEEDED, "open_clip")
    found = export(home, name, tmp_path / "out", to="open_clip")
    assert found["greatest"].keys() == {"images", "texts"}


def test_open_clip_itself_computes_it(home: Path, tmp_path: Path) -> None:
    pytest.importorskip("open_clip", reason="open_clip_torch is not installed")
    found = export(home, "lora both", tmp_path / "out", to="open_clip")
    assert found["greatest"].keys() == {"images", "texts"}


@pytest.mark.parametrize("to", ["safetensors", "numpy"])
@pytest.mark.parametrize("name", LINEAR)
def test_class_weights_are_for_cached_embeddings(
    name: str, to: str, home: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert export(home, name, out, to=to)["greatest"].keys() == {"scores"}
    weight = (
        load_file(out / "class_weights.safetensors")["weight"].numpy()
        if to == "safetensors"
        else np.lib.format.open_memmap(out / "weight.npy", mode="r")
    )
    assert weight.shape == (4, 16)


@pytest.mark.parametrize(
    ("numbers", "made", "smaller"),
    [("fp16", onnx_files.halved, 0.8), ("int8", onnx_files.quantised, 0.9)],
)
def test_smaller_numbers_stay_within_their_tolerance(
    numbers: str, made: Any, smaller: float, home: Path, programs: Path, tmp_path: Path
) -> None:
    whole, out = onnx(home, programs, "soft_prompt"), tmp_path / "out"
    shutil.copytree(whole, out)
    for path in out.glob("*/model.onnx"):
        made(path)
    about, sample, expected = read_parity(out)
    found = compare(about, sample, expected, onnx_run.answer(out, sample, about))
    assert 1e-6 < max(found["greatest"].values()) <= onnx_files.TOLERANCE[numbers]
    sizes = [(one / "textual/model.onnx").stat().st_size for one in (out, whole)]
    assert sizes[0] < smaller * sizes[1]


def test_a_picture_may_be_prepared_inside(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = export(home, "tip_adapter", out, to="onnx", takes="pictures")
    assert found["greatest"].keys() == {"squares", "scores", "probabilities"}
    (given,) = onnxruntime.InferenceSession(out / "visual/model.onnx").get_inputs()
    assert (given.type, given.shape) == ("tensor(uint8)", ["batch", "height", "width", 3])
    about = json.loads((out / "visual/preprocessor_config.json").read_text())
    assert about["do_resize"] is about["do_normalize"] is False
    assert cliptune.export(check=out) == out


def test_texts_are_cut_and_padded_by_what_lies_beside(home: Path, programs: Path) -> None:
    out = onnx(home, programs, "soft_prompt")
    words = Tokenizer.from_file(str(out / "textual/tokenizer.json"))
    texts = ["a red dog", "a blue cat on a table " * 30]
    ids = np.array([one.ids for one in words.encode_batch(texts)])
    assert ids.shape == (2, 73)
    session = onnxruntime.InferenceSession(out / "textual/model.onnx")
    found = session.run(None, {"input_ids": ids})[0]
    wanted = cliptune.load(home / "soft_prompt").embed_text(texts)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "to", "said"),
    [
        ("cocoop", "onnx", "makes a prompt of every image"),
        ("cocoop", "transformers", "fits into no plain CLIPModel"),
        ("soft_prompt deep", "transformers", "in front of the first block alone"),
        ("soft_prompt", "open_clip", "needs a LoRA of a CLIP"),
        ("projection", "peft", "`--to peft` needs a LoRA adapter, got `projection`"),
        ("soft_prompt", "numpy", "was trained on captions"),
        ("kernel_ridge", "safetensors", "is not linear in an image's embedding"),
        ("maple", "numpy", "changes the image tower"),
    ],
)
def test_what_a_form_cannot_say_is_told(
    name: str, to: str, said: str, home: Path, tmp_path: Path
) -> None:
    with pytest.raises(cliptune.ConfigError, match=re.escape(said)):
        cliptune.export(home / name, tmp_path / "out", to=to)
    assert list(tmp_path.iterdir()) == []


def test_one_that_is_too_far_off_is_not_handed_over(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets, "EXACT", -1.0)
    with pytest.raises(cliptune.DataError, match="nothing was handed over"):
        cliptune.export(home / "linear_probe", tmp_path / "out", to="numpy")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_was_altered_is_found(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    export(home, "linear_probe", out, to="numpy")
    weight = np.array(np.lib.format.open_memmap(out / "weight.npy", mode="r"))
    np.save(out / "weight.npy", weight + 0.01)
    said = fails(capsys, "export", "--check", str(out))
    assert "computes something else here than where it was exported" in said
    (out / "parity.safetensors").write_bytes(b"other")
    assert "was altered" in fails(capsys, "export", "--check", str(out))
    assert "parity.json" in fails(capsys, "export", "--check", str(tmp_path))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--out", "x"], "`--run` must be given"),
        (["--run", "x"], "`--out` must be given"),
        (["--run", "x", "--out", "y", "--takes", "squares"], "are of `--to onnx`"),
        (["--run", "x", "--out", "y", "--merged", "--to", "onnx"], "give one of them"),
        (["--check", "x", "--run", "y"], "`--check` stands alone"),
        (["--check", "x", "--takes", "squares"], "`--check` stands alone"),
    ],
)
def test_flags_that_do_not_go_together(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in fails(capsys, "export", *words)


@pytest.mark.parametrize(("to", "extra"), [("onnx", "cliptune[onnx]"), ("peft", "cliptune")])
@pytest.mark.parametrize(
    ("need", "said"),
    [
        ({"torch": (99, 1)}, "`torch` 99.1 or newer, got 2."),
        ({"no-such": (3,)}, "`no-such` 3 or newer, got none: `pip install -U "),
    ],
)
def test_a_runtime_that_is_missing_or_too_old_is_named(
    need: dict[str, tuple[int, ...]],
    said: str,
    to: str,
    extra: str,
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if to == "peft":
        cliptune.export(home / "lora", tmp_path / "made", to=to)
    monkeypatch.setitem(NEEDED, to, need)
    asked = [{"run": home / "lora", "out": tmp_path / "out", "to": to}]
    asked += [{"check": tmp_path / "made"}] if to == "peft" else []
    for words in asked:
        with pytest.raises(cliptune.ConfigError, match=re.escape(said)) as told:
            cliptune.export(**words)
        assert f"`pip install -U '{extra}'`" in str(told.value)
    assert not (tmp_path / "out").exists()


def test_what_is_needed_is_what_the_package_declares() -> None:
    about = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    lines = [*about["dependencies"], *itertools.chain(*about["optional-dependencies"].values())]
    for name, oldest in itertools.chain(*(one.items() for one in NEEDED.values())):
        assert [x for x in lines if x.startswith(f"{name}>={'.'.join(map(str, oldest))}")], name


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("place", ["after_sos", "before_eot", "front", "after_name", "around_name"])
def test_the_padded_tower_is_the_packed_one(place: Place, deep: bool, backbone: Backbone) -> None:
    torch.manual_seed(0)
    texts = ["dog.", "a red ball.", "a photo of a white house near the sea."]
    layers = torch.randn(1, 4, backbone.text_width) if deep else None
    prompt = Prompt(torch.randn(4, backbone.text_width), place, layers)
    tokens = backbone.tokenize(texts)[0]
    ids = tokens.pad(backbone.pad_token, backbone.context_length - 4)
    assert ids.shape == (3, backbone.context_length - 4)
    with torch.no_grad():
        wanted = embed_text(backbone, tokens, prompt)
        torch.testing.assert_close(PaddedText(backbone, prompt)(ids), wanted, rtol=1e-4, atol=1e-5)


def test_the_command_says_how_far_off_it_is(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    words = ["--run", str(home / "linear_probe"), "--out", out, "--to", "safetensors"]
    stage_main("export", words)
    said = capsys.readouterr().out
    assert re.search(r"scores  greatest difference \d.*, tolerance 0.0001", said)
    assert re.search(r"accuracy on 8 val images: ([01]\.\d{4}) here, \1 there", said)
    assert f"cliptune export --check {out}" in said
