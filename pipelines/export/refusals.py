"""What to take where a form cannot say what an adapter does.

Flows in: an adapter. Flows out: the end of a sentence, which names a form that holds it.
"""

from __future__ import annotations

from typing import Any

from trainables.adapters.base import Adapter


def no_program(adapter: Adapter[Any]) -> str:
    """Why no fixed programs do what `adapter` does; empty where some do."""
    if adapter.train_config.task == "captioning":
        return "speaks captions, word by word"
    if adapter.moves_prompt:
        return "makes a prompt of every image, which no fixed text tower holds"
    if adapter.classes is None and adapter.prompt is None and not adapter.frozen_text:
        own = type(adapter).embed_text is not Adapter.embed_text and not hasattr(adapter, "merge")
        return "puts templates around each text, which no text tower does" if own else ""
    return ""


def instead(adapter: Adapter[Any]) -> str:
    """The sentence on what does hold `adapter`."""
    if not no_program(adapter):
        return "`--to onnx` makes programs of it."
    if type(adapter).export is not Adapter.export:
        return "Without `--to` it is written in its own form."
    return "`cliptune.load` runs it as it is."
