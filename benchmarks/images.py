"""From JPEG bytes to the tower's uint8 square, against plain PIL.

The pictures are drawn: 1/f noise, as photos have, at the sizes and bytes of Flickr30k's. The pixels
must be PIL's own, to the byte, so the resize is PIL's too and only the decoder can save anything;
torch's antialiased resize would take a fifth of the time and is two levels off.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.harness import Case, Row
from benchmarks.models import PREPROCESS
from trainables.media.images import decode

Array: TypeAlias = np.ndarray[Any, Any]
SIZES = ((500, 375), (375, 500), (500, 333), (500, 400), (333, 500), (500, 500))
COUNT = 48
QUALITY = 90  # gives 128 kB at 500 x 375


def noise(seed: int, width: int, height: int) -> Array:
    """Photo-like: amplitudes fall with the frequency, channels go together; (3, H, W), std 1."""
    random = np.random.default_rng(seed)
    down, across = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)
    fall = 1 / np.maximum(np.hypot(down, across), 1 / width)
    shape = (3, height, width // 2 + 1)
    waves = random.standard_normal(shape) + 1j * random.standard_normal(shape)
    waves[1:] = 0.8 * waves[0] + 0.3 * waves[1:]
    drawn: Array = np.fft.irfft2(waves * fall, (height, width))
    drawn /= drawn.std()
    return drawn


def jpeg(picture: Array) -> bytes:
    """A picture (3, H, W) of mean 0 and std 1 as a file."""
    pixels = (128 + 55 * picture).clip(0, 255).astype(np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def pil(data: bytes) -> Tensor:
    """CLIP's preprocessing as OpenAI wrote it, up to the normalisation: uint8 (3, 224, 224)."""
    image = Image.open(BytesIO(data)).convert("RGB")
    width, height = image.size
    short = min(width, height)
    width, height = int(224 * width / short), int(224 * height / short)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - 224) // 2, (height - 224) // 2
    image = image.crop((left, top, left + 224, top + 224))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def decoding() -> Case:
    files = [jpeg(noise(number, *SIZES[number % len(SIZES)])) for number in range(COUNT)]
    return Case(
        lambda: {"pixels": torch.stack([pil(data) for data in files])},
        lambda: {"pixels": torch.stack([PREPROCESS.apply(decode(data)) for data in files])},
    )


ROWS = (
    Row("images/jpeg", "48 JPEGs of 500 px to uint8 of 224 px, byte-equal", 2.2, decoding, 0.0),
)
