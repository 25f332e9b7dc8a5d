"""ONNX: `visual/model.onnx`, `textual/model.onnx` and `scores/model.onnx`, with prompts and heads
inside, in the layout that photo servers read.

Flows in: a trained adapter. Flows out: programs of opset 20 for any batch, with what prepares their
inputs beside them: `pixel_values` (B, 3, R, R) float32 normalised, or with `raw` uint8; `input_ids`
(B, N) int64 from `textual/tokenizer.json`, which cuts and pads; `image_embeds` (B, e). Texts come
out of unit length, and images too where no scores are made of them; scores are logits (B, C).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.export.parity import normalised
from pipelines.export.sample import EXACT, Answers, Sample
from trainables.adapters.base import Adapter
from trainables.adapters.shared import processor_config
from trainables.errors import ConfigError
from trainables.files import write_json
from trainables.models.padded import Images, PaddedText
from trainables.training.exported import scores_of
from trainables.training.predict import in_use

OPSET = 20
NEEDED = {"onnx": (1, 20), "onnxruntime": (1, 20), "onnxscript": (0, 5)}  # the oldest with opset 20
Numbers = Literal["fp32", "fp16", "int8"]
TOLERANCE: dict[str, float] = {"fp32": EXACT, "fp16": 1e-2, "int8": 0.2}


class Unit(nn.Module):
    """Rows of unit length."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, given: Tensor) -> Tensor:
        return F.normalize(self.inner(given).float(), dim=-1)


def write(adapter: Adapter[Any], folder: Path, numbers: Numbers, raw: bool) -> list[Path]:
    backbone = adapter.backbone
    check_installed()
    refuse(adapter)
    parts: dict[str, Callable[[], tuple[nn.Module, Tensor, str, str]]] = {}
    if backbone.kind != "embeddings":
        parts["visual"] = lambda: _visual(adapter, raw)
    if _has_words(adapter):
        parts["textual"] = lambda: _textual(adapter)
    if adapter.classes is not None:
        images = torch.zeros(2, backbone.embed_dim, device=backbone.device)
        parts["scores"] = lambda: (scores_of(adapter), images, "image_embeds", "scores")
    wrote: list[Path] = []
    for name, make in parts.items():
        with in_use(adapter):
            program, example, given, gives = make()
            wrote.append(_program(program.eval(), example, given, gives, folder / name, numbers))
        wrote += _beside(name, adapter, folder / name, raw)
    return wrote


def check_installed() -> None:
    """Raise `ConfigError` where a package that ONNX needs is not there, or is too old."""
    for name, oldest in NEEDED.items():
        try:
            have = metadata.version(name)
        except metadata.PackageNotFoundError:
            have = ""
        if not have or tuple(map(int, have.split(".")[:2])) < oldest:
            wanted = ".".join(map(str, oldest))
            raise ConfigError(
                f"ONNX needs `{name}` {wanted} or newer, got {have or 'none'}: "
                "`pip install 'cliptune[onnx]'`."
            )


def refuse(adapter: Adapter[Any]) -> None:
    """Raise `ConfigError` for what no fixed program can say."""
    name = adapter.train_config.name
    if adapter.train_config.task == "captioning":
        raise ConfigError(
            f"`{name}` speaks captions, word by word: `--to onnx` has no form for it."
        )
    if adapter.prompt is not None and type(adapter).classifier is not Adapter.classifier:
        raise ConfigError(
            f"`{name}` makes a prompt of every image, which no text tower of ONNX holds: export an "
            "adapter whose prompt is one, such as coop."
        )


def _has_words(adapter: Adapter[Any]) -> bool:
    """Whether texts that it was not trained on can be compared with what the image tower gives."""
    if adapter.backbone.kind != "clip" or adapter.classes is None:
        return adapter.backbone.kind == "clip"
    inside = adapter.image_block is not None or type(adapter).embed_images is Adapter.embed_images
    return adapter.open_classes and inside and adapter.needs(adapter.train_config) != "embeddings"


def _visual(adapter: Adapter[Any], raw: bool) -> tuple[nn.Module, Tensor, str, str]:
    backbone = adapter.backbone
    size = backbone.preprocess.size
    kind = torch.uint8 if raw else torch.float32
    example = torch.zeros(2, 3, size, size, dtype=kind, device=backbone.device)
    change = adapter.embed_images
    if adapter.classes is None:
        inner: nn.Module = Unit(Images(backbone, change, adapter.image_block, raw))
    else:  # the scores take the rows as they are, and change them where no tower was changed
        own = None if adapter.image_block is None else change
        inner = Images(backbone, own, adapter.image_block, raw)
    return inner, example, "pixel_values", "image_embeds"


def _textual(adapter: Adapter[Any]) -> tuple[nn.Module, Tensor, str, str]:
    nothing = adapter.backbone.tokenize([])[0]

    def change(frozen: Tensor) -> Tensor:
        return adapter.embed_text(nothing, frozen)

    own = change if adapter.frozen_text and adapter.prompt is None else None
    tower = PaddedText(adapter.backbone, adapter.prompt, own)
    ids = torch.full((2, tower.room), adapter.backbone.end_token, device=adapter.backbone.device)
    return Unit(tower), ids, "input_ids", "text_embeds"


def _program(
    program: nn.Module, example: Tensor, given: str, gives: str, folder: Path, numbers: Numbers
) -> Path:
    folder.mkdir(parents=True)
    path = folder / "model.onnx"
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch's own, of its own
        exported = torch.export.export(
            program, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},)
        )
        made: Any = torch.onnx.export(
            exported,
            (),
            dynamo=True,
            opset_version=OPSET,
            input_names=[given],
            output_names=[gives],
            verbose=False,
        )
        made.save(path, external_data=False)
    if numbers == "fp16":
        _halved(path)
    elif numbers == "int8":
        _quantised(path)
    return path


def _halved(path: Path) -> None:
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(path), keep_io_types=True), path)


def _quantised(path: Path) -> None:
    """Weights of matrices as int8, activations as they come: dynamic."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    made = path.with_suffix(".int8")
    quantize_dynamic(path, made, weight_type=QuantType.QInt8)
    made.replace(path)


def _beside(name: str, adapter: Adapter[Any], folder: Path, raw: bool) -> list[Path]:
    """What prepares the inputs, and names the outputs."""
    backbone = adapter.backbone
    if name == "visual":
        path = folder / "preprocessor_config.json"
        about = processor_config(backbone)
        write_json(path, about | ({"do_rescale": False, "do_normalize": False} if raw else {}))
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
        scale = adapter.calibration.scale / adapter.tau if adapter.calibration else 1.0
        write_json(
            path, adapter.classes.to_json() | {"probability": f"softmax({scale:g} * scores)"}
        )
    return [path]


def answer(folder: Path, sample: Sample, about: dict[str, Any]) -> Answers:
    """By onnxruntime alone, with `tokenizers` for texts."""
    from tokenizers import Tokenizer

    check_installed()
    found: Answers = {}
    embeds = sample.image_embeds.float()
    if (folder / "visual").is_dir():
        given = sample.pixels if about["raw"] else normalised(sample, about)
        assert given is not None
        embeds = _run(folder / "visual", given)
        if not (folder / "scores").is_dir():
            found["images"] = embeds
    if (folder / "textual").is_dir():
        words = Tokenizer.from_file(str(folder / "textual" / "tokenizer.json"))
        ids = [one.ids for one in words.encode_batch(sample.texts)]
        found["texts"] = _run(folder / "textual", torch.tensor(ids))
    if (folder / "scores").is_dir():
        found["scores"] = _run(folder / "scores", embeds)
    return found


def _run(folder: Path, given: Tensor) -> Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(
        folder / "model.onnx", providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name
    parts = [session.run(None, {name: one.numpy()})[0] for one in given.split(16)]
    return torch.cat([torch.from_numpy(one).float() for one in parts])
