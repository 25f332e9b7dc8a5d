"""The forms that a trained adapter is handed over in: how each is written, and run.

Flows in: the name of a form. Flows out: its `Target`. A new form is a module and a line here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pipelines.export import arrays, merged, onnx_files, onnx_run, to_open_clip
from pipelines.export.sample import EXACT, Answers, Sample
from trainables.adapters.base import Adapter


@dataclass(frozen=True)
class Target:
    """`write` raises `ConfigError` where the form cannot say what the adapter does; `answer` runs
    what was written, without cliptune's adapter."""

    write: Callable[[Adapter[Any], Path, Sample], list[Path]]
    answer: Callable[[Path, Sample, dict[str, Any]], Answers]
    tolerance: float
    loading: str


def target_of(
    to: str, numbers: onnx_files.Numbers = "fp32", takes: onnx_files.Takes = "pixels"
) -> Target:
    if to == "onnx":
        write = partial(onnx_files.write, numbers=numbers, takes=takes)
        loading = 'onnxruntime.InferenceSession("{}/.../model.onnx")'
        tolerance = onnx_files.tolerance(numbers, takes)
        return Target(write, onnx_run.answer, tolerance, loading)
    if to in ("safetensors", "numpy"):
        loading = {
            "numpy": 'numpy.load("{}/weight.npy")',
            "safetensors": 'safetensors.torch.load_file("{}/class_weights.safetensors")',
        }[to]
        return Target(partial(arrays.write, kind=to), arrays.answer, EXACT, loading)
    if to == "open_clip":
        loading = 'open_clip.create_model_and_transforms("local-dir:{}")'
        return Target(to_open_clip.write, to_open_clip.answer, EXACT, loading)
    if to == "transformers":
        loading = 'CLIPModel.from_pretrained("{}")'
        return Target(merged.write_merged, merged.answer, EXACT, loading)
    loading = 'PeftModel.from_pretrained(CLIPModel.from_pretrained(...), "{}")'
    return Target(merged.write_peft, merged.answer, EXACT, loading)
