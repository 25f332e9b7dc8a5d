"""The packages that a form is written with and run by.

Flows in: the name of a form. Flows out: nothing, or an error that says what to install.
"""

from __future__ import annotations

from importlib import metadata

from trainables.errors import ConfigError

# The oldest version that will do; ONNX's are the oldest with opset 20.
NEEDED: dict[str, dict[str, tuple[int, ...]]] = {
    "onnx": {"onnx": (1, 20), "onnxruntime": (1, 20), "onnxscript": (0, 5)},
    "open_clip": {"open_clip_torch": (3,)},
    "peft": {"peft": (0, 21), "transformers": (5, 20)},
    "transformers": {"transformers": (5, 20)},
}
INSTALL = {"onnx": "cliptune[onnx]", "open_clip": "cliptune[open-clip]"}


def check_installed(to: str) -> None:
    """Raise `ConfigError` where a package that `to` needs is not there, or is too old."""
    for name, oldest in NEEDED.get(to, {}).items():
        try:
            have = metadata.version(name)
        except metadata.PackageNotFoundError:
            have = ""
        parts = tuple(int(part) for part in have.split(".")[:2] if part.isdigit())
        if parts < oldest:
            raise ConfigError(
                f"`--to {to}` needs `{name}` {'.'.join(map(str, oldest))} or newer, got "
                f"{have or 'none'}: `pip install -U '{INSTALL.get(to, 'cliptune')}'`."
            )
