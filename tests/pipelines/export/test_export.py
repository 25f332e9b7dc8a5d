"""A captioner handed over: what `export` writes speaks in plain transformers as it does here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipelines.cli import stage_main
from tests.pipelines.train.test_train import fails
from tests.tiny import tiny_lm, tiny_shards
from trainables.adapters.lora import Lora
from trainables.adapters.prefix_captioner import PrefixCaptioner
from trainables.adapters.registry import build, make_config
from trainables.files import read_json
from trainables.models.backbone import Backbone
from trainables.training.checkpoint import load_adapter

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
LENGTH, WORDS = 3, 8
OWN = {
    "full": ("adapter.lm_mode=full",),
    "lora": ("adapter.lm_mode=lora", "adapter.lora_rank=2", "adapter.normalize=false"),
    "frozen": (
        *("adapter.lm_mode=frozen", "adapter.mapper=transformer", "adapter.clip_length=2"),
        *("adapter.layers=2", "adapter.heads=4"),
    ),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, clip: Path) -> Path:
    """Captioned features, a language model, and a trained captioner of each mode."""
    home = tmp_path_factory.mktemp("export")
    tiny_shards(home / "shards")
    tiny_lm(home / "lm", seed=2)
    flags = ["--shards", str(home / "shards"), "--backbone", str(clip)]
    stage_main("encode", [*flags, "--out", str(home / "features")])
    for mode, own in OWN.items():
        flags = ["--features", str(home / "features"), "--out", str(home / mode)]
        fields = [f"adapter.lm={home / 'lm'}", f"adapter.prefix_length={LENGTH}", *own]
        fields += ["adapter.decoding=greedy", f"adapter.max_tokens={WORDS}", "precision=fp32"]
        fields += ["batch_size=8", "epochs=1", "optim.lr=0.001", "optim.warmup=0"]
        stage_main("train", [*flags, "--adapter", "prefix_captioner", "--set", *fields])
    return home


def exported(home: Path, mode: str, out: Path) -> Path:
    stage_main("export", ["--run", str(home / mode), "--out", str(out)])
    return out


def images(backbone: Backbone) -> Tensor:
    """Embeddings as unlike as can be: (8, e)."""
    return torch.randn(8, backbone.embed_dim, generator=torch.Generator().manual_seed(0))


def captioner(home: Path, mode: str, backbone: Backbone) -> PrefixCaptioner:
    adapter = load_adapter(home / mode / "best", backbone)
    assert isinstance(adapter, PrefixCaptioner)
    return adapter


def prefix_by_hand(folder: Path, embeds: Tensor) -> Tensor:
    """The prefix from mapper.safetensors and mapper.json alone: (B, k, d)."""
    about = read_json(folder / "mapper.json")
    weights = {
        name.removeprefix("mapper."): tensor
        for name, tensor in load_file(folder / "mapper.safetensors").items()
    }
    if about["normalize"]:
        embeds = embeds / embeds.norm(dim=-1, keepdim=True)
    length = about["prefix_length"]
    if about["mapper"] == "mlp":
        middle = (embeds @ weights["0.weight"].T + weights["0.bias"]).tanh()
        found = middle @ weights["2.weight"].T + weights["2.bias"]
        return found.view(len(embeds), length, -1)
    constant = weights["constant"]
    width = constant.shape[1]
    seen = F.linear(embeds, weights["enter.weight"], weights["enter.bias"])
    tokens = torch.cat(
        [seen.view(len(embeds), -1, width), constant.repeat(len(embeds), 1, 1)], dim=1
    )
    for number in range(about["layers"]):
        own = {
            name.removeprefix(f"blocks.{number}."): tensor
            for name, tensor in weights.items()
            if name.startswith(f"blocks.{number}.")
        }
        tokens = block_by_hand(tokens, own, about["heads"])
    return tokens[:, -length:]


def block_by_hand(tokens: Tensor, own: dict[str, Tensor], heads: int) -> Tensor:
    """One pre-norm block, its heads one after the other."""
    width = tokens.shape[-1]
    normed = F.layer_norm(tokens, (width,), own["norm1.weight"], own["norm1.bias"])
    q, k, v = (normed @ part.T for part in own["qkv.weight"].split(width))
    size = width // heads
    read = []
    for start in range(0, width, size):
        here = slice(start, start + size)
        scores = q[..., here] @ k[..., here].transpose(1, 2) / size**0.5
        read.append(scores.softmax(-1) @ v[..., here])
    tokens = tokens + F.linear(torch.cat(read, -1), own["out.weight"], own["out.bias"])
    normed = F.layer_norm(tokens, (width,), own["norm2.weight"], own["norm2.bias"])
    middle = F.linear(normed, own["mlp.0.weight"], own["mlp.0.bias"]).relu()
    return tokens + F.linear(middle, own["mlp.2.weight"], own["mlp.2.bias"])


@pytest.mark.parametrize("mode", OWN)
@torch.no_grad()
def test_what_is_exported_speaks_as_the_adapter(
    mode: str, home: Path, tmp_path: Path, backbone: Backbone
) -> None:
    out = exported(home, mode, tmp_path / "out")
    adapter, embeds = captioner(home, mode, backbone), images(backbone)
    model: Any = AutoModelForCausalLM.from_pretrained(out / "language_model").eval()
    tokenizer = AutoTokenizer.from_pretrained(out / "language_model")
    prefix = prefix_by_hand(out, embeds)
    torch.testing.assert_close(prefix, adapter.prefix(embeds, None))

    ids = torch.tensor(tokenizer(["a red dog"])["input_ids"]).repeat(len(prefix), 1)
    vectors = torch.cat([prefix, model.get_input_embeddings()(ids)], dim=1)
    ours = torch.cat([prefix, adapter.lm.embed(ids)], dim=1)
    places = torch.arange(ours[..., 0].numel())
    logits = model(inputs_embeds=vectors).logits
    torch.testing.assert_close(
        logits.flatten(0, 1), adapter.lm.logits(ours, places), rtol=1e-4, atol=1e-4
    )
    plain: Any = AutoModelForCausalLM.from_pretrained(home / "lm").eval()
    untrained = plain(
        inputs_embeds=torch.cat([prefix, plain.get_input_embeddings()(ids)], dim=1)
    ).logits
    assert torch.allclose(logits, untrained, atol=1e-4) == (mode == "frozen")

    said = model.generate(
        inputs_embeds=prefix,
        attention_mask=torch.ones(prefix.shape[:2], dtype=torch.int64),
        max_new_tokens=WORDS,
        do_sample=False,
        pad_token_id=tokenizer.eos_token_id,
    )
    texts = [" ".join(text.split()) for text in tokenizer.batch_decode(said, True)]
    assert texts == adapter.captions(embeds)
    assert len(set(texts)) > 1  # it looks at the image


def test_exporting_changes_nothing_and_names_the_backbone(
    home: Path, tmp_path: Path, backbone: Backbone
) -> None:
    adapter, embeds = captioner(home, "lora", backbone), images(backbone)
    before = adapter.captions(embeds)
    written = adapter.export(tmp_path / "out")
    assert adapter.captions(embeds) == before
    assert [path.exists() for path in written] == [True] * 3
    about = read_json(tmp_path / "out/mapper.json")
    assert (about["backbone"], about["lm_mode"], about["normalize"]) == (
        backbone.name,
        "lora",
        False,
    )
    names = load_file(tmp_path / "out/language_model/model.safetensors")
    assert not [name for name in names if "lora" in name]  # merged


def test_the_last_line_says_how_to_load_what_was_written(
    home: Path, tmp_path: Path, backbone: Backbone, capsys: pytest.CaptureFixture[str]
) -> None:
    out = exported(home, "frozen", tmp_path / "out")
    said = capsys.readouterr()
    assert said.err == ""  # no bars of other libraries
    last = said.out.splitlines()[-1]
    named = re.findall(r'"(.+?)"', last)
    assert last.startswith("next: AutoModelForCausalLM.from_pretrained(")
    assert named == [f"{out}/language_model", f"{out}/mapper.safetensors"]
    assert load_file(named[1]).keys() >= {"mapper.enter.weight", "mapper.constant"}
    lora = build(make_config("lora"), backbone)
    assert isinstance(lora, Lora)
    assert lora.loading(tmp_path) == (
        f'PeftModel.from_pretrained(CLIPModel.from_pretrained(...), "{tmp_path}")'
    )


def test_what_a_captioner_is_not_for_says_so_before_any_work(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(home / "full")
    before = sorted(path.name for path in (home / "full").iterdir())
    said = fails(capsys, "export", "--run", run, "--out", str(tmp_path / "x"), "--merged")
    assert "`--merged` needs a LoRA adapter, got `prefix_captioner`." in said
    for flags in ([], ["--take", "0.5", "--out", str(tmp_path / "x")]):
        said = fails(capsys, "sweep", "--run", run, *flags)
        assert said.startswith(f"error: `{run}` is a run of captioning: it writes captions")
        assert f"`cliptune evaluate --run {run} --beside OTHER_RUN`" in said
    said = fails(capsys, "explain", "--run", run)
    assert said.startswith(f"error: `{run}` is a run of captioning: it writes captions")
    assert f"`cliptune report --run {run}`" in said
    assert sorted(path.name for path in (home / "full").iterdir()) == before
    assert not (tmp_path / "x").exists()
