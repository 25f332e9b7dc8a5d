"""ONNX: `visual/model.onnx`, `textual/model.onnx` and `scores/model.onnx`, with prompts and heads
inside, in the layout that photo servers read.

Flows in: a trained adapter. Flows out: programs of opset 20 for any batch, with what prepares their
inputs beside them: `pixel_values` (B, 3, R, R) float32 normalised, or as `takes` says uint8 squares
of that shape, or uint8 `pictures` (B, H, W, 3) of any size; `input_ids` (B, N) int64 from
`textual/tokenizer.json`, which cuts and pads; `image_embeds` (B, e). Texts come out of unit length,
and images too where no scores are made of them; scores are logits (B, C), with `probabilities`
where val calibrated them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.export.installed import check_installed
from pipelines.export.pictures import put_in_front
from pipelines.export.refusals import instead, no_program
from pipelines.export.sample import EXACT, Sample
from trainables.adapters.base import Adapter
from trainables.adapters.shared import processor_config
from trainables.errors import ConfigError
from trainables.files import write_json
from trainables.models.padded import Images, PaddedText
from trainables.training.exported import scores_of
from trainables.training.predict import in_use

OPSET = 20
Numbers = Literal["fp32", "fp16", "int8"]
Takes = Literal["pixels", "squares", "pictures"]
TOLERANCE: dict[str, float] = {"fp32": EXACT, "fp16": 1e-2, "int8": 0.2}
PREPARED = 1e-3  # where a pixel may be a level off


class Unit(nn.Module):
    """Rows of unit length."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, given: Tensor) -> Tensor:
        return F.normalize(self.inner(given).float(), dim=-1)


class Calibrated(nn.Module):
    """Logits (B, C), and the probabilities (B, C) that val calibrated them to be."""

    def __init__(self, inner: nn.Module, scale: float) -> None:
        super().__init__()
        self.inner, self.scale = inner, scale

    def forward(self, given: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.inner(given)
        return scores, (self.scale * scores).softmax(1)


@dataclass(frozen=True)
class Part:
    """A program before it is one, with an example and the names of what goes in and out."""

    module: nn.Module
    example: Tensor
    given: str
    gives: tuple[str, ...]


def tolerance(numbers: Numbers, takes: Takes) -> float:
    return max(TOLERANCE[numbers], PREPARED if takes == "pictures" else 0.0)


def write(
    adapter: Adapter[Any], folder: Path, sample: Sample, numbers: Numbers, takes: Takes
) -> list[Path]:
    del sample
    backbone = adapter.backbone
    refuse(adapter, takes)
    check_installed("onnx")
    parts: dict[str, Callable[[], Part]] = {}
    if backbone.kind != "embeddings":
        parts["visual"] = lambda: _visual(adapter, takes)
    if _has_words(adapter):
        parts["textual"] = lambda: _textual(adapter)
    if adapter.classes is not None:
        parts["scores"] = lambda: _scores(adapter)
    wrote: list[Path] = []
    for name, make in parts.items():
        with in_use(adapter):
            wrote.append(_program(make(), folder / name, numbers))
        wrote += _beside(name, adapter, folder / name, takes)
    if takes == "pictures":
        put_in_front(folder / "visual" / "model.onnx", backbone.preprocess)
    return wrote


def refuse(adapter: Adapter[Any], takes: Takes) -> None:
    """Raise `ConfigError` for what no fixed program can say."""
    name = adapter.train_config.name
    if adapter.backbone.kind == "embeddings" and takes != "pixels":
        raise ConfigError(
            f"`--takes {takes}` is of an image tower: this run's embeddings were given finished."
        )
    if why := no_program(adapter):
        raise ConfigError(f"`--to onnx` has no form for `{name}`: it {why}. {instead(adapter)}")


def _has_words(adapter: Adapter[Any]) -> bool:
    """Whether texts that it was not trained on can be compared with what the image tower gives."""
    if adapter.prompt is not None and not adapter.prompt.shared:
        return False  # a prompt for each class
    if adapter.backbone.kind != "clip" or adapter.classes is None:
        return adapter.backbone.kind == "clip"
    inside = adapter.image_block is not None or type(adapter).embed_images is Adapter.embed_images
    return adapter.open_classes and inside and adapter.needs(adapter.train_config) != "embeddings"


def _visual(adapter: Adapter[Any], takes: Takes) -> Part:
    backbone = adapter.backbone
    size, raw = backbone.preprocess.size, takes != "pixels"
    kind = torch.uint8 if raw else torch.float32
    example = torch.zeros(2, 3, size, size, dtype=kind, device=backbone.device)
    change = adapter.embed_images
    if adapter.classes is None:
        inner: nn.Module = Unit(Images(backbone, change, adapter.image_block, raw))
    else:  # the scores take the rows as they are, and change them where no tower was changed
        own = None if adapter.image_block is None else change
        inner = Images(backbone, own, adapter.image_block, raw)
    return Part(inner, example, "pixel_values", ("image_embeds",))


def _textual(adapter: Adapter[Any]) -> Part:
    nothing = adapter.backbone.tokenize([])[0]

    def change(frozen: Tensor) -> Tensor:
        return adapter.embed_text(nothing, frozen)

    own = change if adapter.frozen_text and adapter.prompt is None else None
    tower = PaddedText(adapter.backbone, adapter.prompt, own)
    ids = torch.full((2, tower.room), adapter.backbone.end_token, device=adapter.backbone.device)
    return Part(Unit(tower), ids, "input_ids", ("text_embeds",))


def _scores(adapter: Adapter[Any]) -> Part:
    backbone, scores = adapter.backbone, scores_of(adapter)
    images = torch.zeros(2, backbone.embed_dim, device=backbone.device)
    if adapter.calibration is None:
        return Part(scores, images, "image_embeds", ("scores",))
    whole = Calibrated(scores, _scale(adapter))
    return Part(whole, images, "image_embeds", ("scores", "probabilities"))


def _scale(adapter: Adapter[Any]) -> float:
    """What logits are multiplied by to be probabilities behind a softmax, as far as val said."""
    return adapter.calibration.scale / adapter.tau if adapter.calibration else 1.0


def _program(part: Part, folder: Path, numbers: Numbers) -> Path:
    folder.mkdir(parents=True)
    path = folder / "model.onnx"
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch's own, of its own
        exported = torch.export.export(
            part.module.eval(), (part.example,), dynamic_shapes=({0: torch.export.Dim("batch")},)
        )
        made: Any = torch.onnx.export(
            exported,
            (),
            dynamo=True,
            opset_version=OPSET,
            input_names=[part.given],
            output_names=[*part.gives],
            verbose=False,
        )
        made.save(path, external_data=False)
    if numbers == "fp16":
        halved(path)
    elif numbers == "int8":
        quantised(path)
    return path


def halved(path: Path) -> None:
    """All numbers inside as fp16."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(path), keep_io_types=True), path)


def quantised(path: Path) -> None:
    """Weights of matrices as int8, activations as they come: dynamic."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    made = path.with_suffix(".int8")
    quantize_dynamic(path, made, weight_type=QuantType.QInt8)
    made.replace(path)


def _beside(name: str, adapter: Adapter[Any], folder: Path, takes: Takes) -> list[Path]:
    """What prepares the inputs, and names the outputs."""
    backbone = adapter.backbone
    if name == "visual":
        path = folder / "preprocessor_config.json"
        about = processor_config(backbone)
        inside = ["rescale", "normalize"] if takes != "pixels" else []
        inside += ["resize", "center_crop"] if takes == "pictures" else []
        write_json(path, about | {f"do_{step}": False for step in inside})
    elif name == "textual":
        path = folder / "tokenizer.json"
        tokenizer = backbone.tokenizer.backend_tokenizer
        words = type(tokenizer).from_str(tokenizer.to_str())
        room = backbone.context_length - adapter.added_tokens
        words.enable_truncation(room)
        words.enable_padding(length=room, pad_id=backbone.pad_token)
        words.save(str(path))
    else:
        assert adapter.classes is not None
        path = folder / "classes.json"
        probability = f"softmax({_scale(adapter):g} * scores)"
        write_json(path, adapter.classes.to_json() | {"probability": probability})
    return [path]
