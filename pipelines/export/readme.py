"""README.md of an exported folder: what lies there, and lines that run it without cliptune.

Flows in: what `parity.json` says. Flows out: a text, whose Python runs in the folder on the sample
that lies there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

FILES = {
    "visual": "image tower: {given}, to `image_embeds` (B, {width}) float32",
    "textual": "text tower: `input_ids` (B, N) int64, by its tokenizer.json, to `text_embeds`",
    "scores": "`image_embeds` (B, {width}) to `scores` (B, C), logits, and `probabilities` (B, C) "
    "where val calibrated them; classes.json has the C names",
    "class_weights.safetensors": "`weight` (C, {width}) and `bias` (C,)",
    "weight.npy": "(C, {width}), of embeddings of unit length",
    "bias.npy": "(C,)",
    "classes.json": "the names of the C classes",
    "config.json": "a CLIPModel of transformers, with model.safetensors",
    "adapter_config.json": "a LoRA in PEFT's format, with adapter_model.safetensors",
    "open_clip_config.json": "a model of open_clip, with open_clip_model.safetensors",
    "parity.json": "how far it is from the adapter here; `cliptune export --check` measures again",
    "parity.safetensors": "the sample that was measured, and what the adapter answered",
}
SAMPLE = 'from safetensors.numpy import load_file\n\nsample = load_file("parity.safetensors")'
UNIT = "images = sample['image_embeds']\nimages /= ((images**2).sum(1, keepdims=True)) ** 0.5"
PEFT = [
    "from peft import PeftModel\n",
    'model = PeftModel.from_pretrained(model, ".").base_model.model',
]
GIVEN = {
    "pixels": ("pixel_values", "(B, 3, R, R) float32, normalised", "{normalised}"),
    "squares": ("pixel_values", "(B, 3, R, R) uint8", 'sample["pixels"]'),
    "pictures": (
        *("pictures", "(B, H, W, 3) uint8 RGB of any size"),
        'sample["pixels"].transpose(0, 2, 3, 1)',
    ),
}


def readme(folder: Path, about: dict[str, Any], width: int) -> str:
    """The text; `width` is e, that of the joint space."""
    name, shape, _ = GIVEN[about["takes"]]
    given = f"`{name}` {shape}"
    rows = [
        f"| `{file}` | {text.format(width=width, given=given)} |"
        for file, text in FILES.items()
        if (folder / file).exists() or file.startswith("parity")
    ]
    code = "\n".join([SAMPLE, *_lines(folder, about)])
    return "\n".join(
        [
            f"# `{about['adapter']}` of {about['backbone']['name']}\n",
            "| file | |\n|---|---|",
            *rows,
            "\nRun in this folder, on the sample that lies here:\n",
            f"```python\n{code}\n```\n",
        ]
    )


def _lines(folder: Path, about: dict[str, Any]) -> list[str]:
    columns = ([[[value]] for value in about[one]] for one in ("mean", "std"))
    mean, std = (f"np.array({one}, np.float32)" for one in columns)
    normalised = f'(sample["pixels"] / np.float32(255) - {mean}) / {std}'
    if about["to"] == "onnx":
        return _onnx(folder, about, normalised)
    if about["to"] in ("numpy", "safetensors"):
        load = (
            'weight, bias = np.load("weight.npy"), np.load("bias.npy")'
            if about["to"] == "numpy"
            else 'found = load_file("class_weights.safetensors")\n'
            'weight, bias = found["weight"], found["bias"]'
        )
        return ["import numpy as np\n", load, UNIT, "scores = images @ weight.T + bias"]
    texts = [f"texts = {about['texts'][:2]!r}"]
    pixels = [f"pixels = torch.from_numpy({normalised})"]
    if about["to"] == "open_clip":
        return [
            "import numpy as np\nimport open_clip\nimport torch\n",
            *texts,
            *pixels,
            'model = open_clip.create_model_and_transforms("local-dir:.")[0].eval()',
            'ids = open_clip.get_tokenizer("local-dir:.")(texts)',
            "image_embeds, text_embeds = model.encode_image(pixels), model.encode_text(ids)",
        ]
    base = "." if about["to"] == "transformers" else about["backbone"]["name"]
    return [
        "import numpy as np\nimport torch\nfrom transformers import AutoModel, AutoTokenizer\n",
        *texts,
        *pixels,
        f'model = AutoModel.from_pretrained("{base}")',
        *(PEFT if about["to"] == "peft" else []),
        f'tokenizer = AutoTokenizer.from_pretrained("{base}")',
        'how = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}',
        'ids = tokenizer(texts, **how)["input_ids"]',
        "image_embeds = model.eval().get_image_features(pixel_values=pixels).pooler_output",
        "text_embeds = model.get_text_features(input_ids=ids).pooler_output",
    ]


def _onnx(folder: Path, about: dict[str, Any], normalised: str) -> list[str]:
    lines = [
        "import numpy as np\nimport onnxruntime\n",
        "def run(part, **given):",
        '    program = onnxruntime.InferenceSession(f"{part}/model.onnx")',
        "    return program.run(None, given)\n",
    ]
    name, _, given = GIVEN[about["takes"]]
    if (folder / "visual").is_dir():
        lines += [f'(image_embeds,) = run("visual", {name}={given.format(normalised=normalised)})']
    else:
        lines += ['image_embeds = sample["image_embeds"]']
    if (folder / "textual").is_dir():
        lines += [
            "from tokenizers import Tokenizer\n",
            'words = Tokenizer.from_file("textual/tokenizer.json")',
            f"ids = np.array([one.ids for one in words.encode_batch({about['texts'][:2]!r})])",
            '(text_embeds,) = run("textual", input_ids=ids)',
        ]
    if (folder / "scores").is_dir():
        lines += ['scores, *probabilities = run("scores", image_embeds=image_embeds)']
    return lines
