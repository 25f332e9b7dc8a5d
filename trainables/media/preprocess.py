"""From decoded pixels to the square that the image tower reads.

Flows in: a decoded image, uint8 (3, H, W), and a Hugging Face preprocessor config. Flows out: uint8
(3, R, R), to the byte as Hugging Face's own (PIL) processor makes it; augmented views as a pure
function of (data seed, epoch, index).
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from trainables.errors import ConfigError
from trainables.files import read_json

# In every feature store's key: raise it when the pixels of this module or of `images` change.
VERSION = 1
MODES = {2: "bilinear", 3: "bicubic"}  # PIL's numbers
MAX_ASPECT = 16  # only the middle of a longer strip reaches the crop; the rest is cut off first
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def decoder_versions() -> dict[str, str]:
    """The versions of the libraries that turn bytes into the tower's pixels."""
    names = ("simplejpeg", "pillow")
    return {"preprocess": str(VERSION)} | {name: metadata.version(name) for name in names}


@dataclass(frozen=True)
class View:
    """A random resized crop and flip, independent of the image's size. All fields but `flip` are
    shares."""

    area: float  # of the crop, of the image's area
    ratio: float  # width / height of the crop, in pixels
    top: float  # of the free height
    left: float  # of the free width
    flip: bool


def view_of(
    data_seed: int, epoch: int, index: int, scale: tuple[float, float] = (0.5, 1.0)
) -> View:
    """View `epoch` of image `index`: the same for every trial, so it can be encoded once for all.

    Area uniform in `scale`, log aspect ratio uniform in [log 3/4, log 4/3], as torchvision's
    `RandomResizedCrop`, but one draw, clamped to the image. The area starts at 0.5 (Tip-Adapter's
    augmentation; CoOp's 0.08 often crops away what a caption speaks of).
    """
    random = np.random.Generator(np.random.Philox(key=data_seed, counter=[0, 0, epoch, index]))
    area, ratio, top, left, flip = random.random(5)
    return View(
        area=scale[0] + (scale[1] - scale[0]) * area,
        ratio=float((3 / 4) ** (1 - 2 * ratio)),
        top=top,
        left=left,
        flip=bool(flip < 0.5),
    )


@dataclass(frozen=True)
class Preprocess:
    """The preprocessing that the tower was trained with.

    `crop`: the shorter edge to `resize` pixels, then the centre square of `size` (CLIP). `squash`:
    both edges to `size`, whatever the aspect (SigLIP).
    """

    kind: Literal["crop", "squash"]
    size: int  # R
    resize: int  # shorter edge before the crop; `size` where kind is squash
    mode: str  # of the antialiased resize: bicubic or bilinear
    mean: tuple[float, float, float]  # of the pixels as shares of 255
    std: tuple[float, float, float]

    def apply(self, image: Tensor, view: View | None = None) -> Tensor:
        """`image` uint8 (3, H, W) to uint8 (3, R, R): the clean view, or the augmented `view`."""
        if view is not None:
            return self._augmented(image, view)
        if self.kind == "squash":
            return self._resize(image, self.size, self.size)
        image = _middle(image)
        height, width = image.shape[1:]
        short, long = min(height, width), max(height, width)
        far = int(self.resize * long / short)
        sides = (far, self.resize) if width <= height else (self.resize, far)
        top, left = ((side - self.size) // 2 for side in sides)
        resized = self._resize(image, *sides)
        return resized[:, top : top + self.size, left : left + self.size]

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8 (B, 3, R, R) to the tower's float input, on the device the pixels are on."""
        mean = torch.tensor(self.mean, device=pixels.device).view(3, 1, 1)
        std = torch.tensor(self.std, device=pixels.device).view(3, 1, 1)
        return (pixels.float() / 255 - mean) / std

    def _augmented(self, image: Tensor, view: View) -> Tensor:
        height, width = image.shape[1:]
        target = view.area * height * width
        high = max(1, min(height, round((target / view.ratio) ** 0.5)))
        wide = max(1, min(width, round((target * view.ratio) ** 0.5)))
        top, left = int(view.top * (height - high + 1)), int(view.left * (width - wide + 1))
        crop = self._resize(image[:, top : top + high, left : left + wide], self.size, self.size)
        return crop.flip(2) if view.flip else crop

    def _resize(self, image: Tensor, height: int, width: int) -> Tensor:
        """By PIL, as Hugging Face does: torch's antialiased uint8 resize is up to three times as
        fast, but two levels off on some photos, and twenty where PIL changes the order of passes.
        """
        filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
        picture = Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))
        resized = np.array(picture.resize((width, height), filters[self.mode]))
        return torch.from_numpy(resized).permute(2, 0, 1)


def _middle(image: Tensor) -> Tensor:
    """Cut a strip to `MAX_ASPECT` around its centre: 1 x 100,000 pixels would resize to 15 GB."""
    for axis in (1, 2):
        length, limit = image.shape[axis], MAX_ASPECT * image.shape[3 - axis]
        if length > limit:
            image = image.narrow(axis, (length - limit) // 2, limit)
    return image


def read_preprocess(folder: Path, model: Literal["clip", "siglip", "dual"]) -> Preprocess:
    """The preprocessing that `folder` asks for; a `ConfigError` where it could not be done
    exactly."""
    names = ("preprocessor_config.json", "processor_config.json")  # the second by transformers 5
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        raise ConfigError(
            f"`{folder}` has no preprocessor_config.json, so how its images must be resized and "
            "normalised is unknown. Copy the file from the model's own repository."
        )
    config = read_json(path)
    config = config.get("image_processor", config)
    if not isinstance(config, dict):
        raise ConfigError(f"`{path}` must hold a JSON object, got {type(config).__name__}.")
    if model == "dual":  # what is left out means what it means for its class
        model = "clip" if str(config.get("image_processor_type")).startswith("CLIP") else "siglip"
    for step in ("do_resize", "do_rescale", "do_normalize"):
        _require(config.get(step, True) is True, path, step, "true", config.get(step))
    factor = config.get("rescale_factor", 1 / 255)
    _require(abs(factor * 255 - 1) < 1e-6, path, "rescale_factor", "1/255", factor)
    resample = config.get("resample", 3)
    _require(resample in MODES, path, "resample", "2 (bilinear) or 3 (bicubic)", resample)
    half = (0.5, 0.5, 0.5)
    mean = config.get("image_mean", CLIP_MEAN if model == "clip" else half)
    std = config.get("image_std", CLIP_STD if model == "clip" else half)
    _require(len(mean) == len(std) == 3, path, "image_mean", "three numbers", mean)
    kind, size, resize = _sizes(config, path, model)
    return Preprocess(kind, size, resize, MODES[resample], tuple(mean), tuple(std))


def _sizes(
    config: dict[str, Any], path: Path, model: Literal["clip", "siglip"]
) -> tuple[Literal["crop", "squash"], int, int]:
    """Kind, R and the shorter edge, from the several spellings that exist."""
    size = config.get("size", 224)
    if isinstance(size, int):
        size = {"shortest_edge": size} if model == "clip" else {"height": size, "width": size}
    crops = config.get("do_center_crop", model == "clip")
    crop = config.get("crop_size", 224)
    crop = {"height": crop, "width": crop} if isinstance(crop, int) else crop
    if crops:
        _require(
            set(size) == {"shortest_edge"}, path, "size", "a shortest edge, to crop from", size
        )
        edge = int(size["shortest_edge"])
        square = crop.get("height") == crop.get("width") and int(crop.get("width", 0)) <= edge
        _require(square, path, "crop_size", f"a square of at most {edge}", crop)
        return "crop", int(crop["height"]), edge
    square = set(size) == {"height", "width"} and size["height"] == size["width"]
    _require(square, path, "size", "a square where nothing is cropped", size)
    return "squash", int(size["height"]), int(size["height"])


def _require(rule: bool, path: Path, field: str, text: str, value: object) -> None:
    if not rule:
        raise ConfigError(f"`{field}` in `{path}` must be {text}, got {value!r}.")
