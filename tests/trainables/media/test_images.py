"""The decoder: one defined result for every odd file, one readable reason for every bad one."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.pictures import png
from trainables.media import image_headers, images
from trainables.media.images import BadImage, decode, probe

RED, GREEN, BLUE, WHITE, GREY = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255,) * 3, (128,) * 3


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photo(width: int = 48, height: int = 32, mode: str = "RGB") -> Image.Image:
    """A smooth picture with a bright spot, which JPEG keeps nearly as it is."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([x * 255 / width, y * 255 / height, (x + y) * 2 % 255], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8)).convert(mode)


def pixel(data: bytes, x: int = 0, y: int = 0) -> tuple[int, ...]:
    return tuple(decode(data)[:, y, x].tolist())


def reason(data: bytes) -> str:
    with pytest.raises(BadImage) as caught:
        decode(data)
    return str(caught.value)


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


# --- one defined result -------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 30}])
def test_jpeg_equals_pil(options: dict[str, Any]) -> None:
    data = encoded(photo(), "JPEG", **options)
    expected = torch.from_numpy(np.array(Image.open(io.BytesIO(data)))).permute(2, 0, 1)
    assert decode(data).shape == (3, 32, 48)
    assert decode(data).dtype == torch.uint8
    assert (decode(data).int() - expected.int()).abs().max() <= 2


HIDDEN = Image.new("RGBA", (2, 2), (*RED, 0))
GOLDEN = {
    "grey jpeg": (encoded(Image.new("L", (8, 8), 128), "JPEG"), GREY),
    "cmyk jpeg": (encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"), RED),
    "grey png": (encoded(Image.new("L", (2, 2), 128), "PNG"), GREY),
    "black and white png": (encoded(Image.new("1", (2, 2), 1), "PNG"), WHITE),
    "16-bit grey, middle": (png(1, 1, 16, 0, b"\0" + struct.pack(">H", 128 * 257)), GREY),
    "16-bit grey, full": (png(1, 1, 16, 0, b"\0\xff\xff"), WHITE),
    "16-bit grey, rounded": (png(1, 1, 16, 0, b"\0" + struct.pack(">H", 257 + 129)), (2, 2, 2)),
    "16-bit grey, clear": (png(1, 1, 16, 0, b"\0\x01\x00", b"tRNS\x01\x00"), WHITE),
    "16-bit colour": (png(1, 1, 16, 2, b"\0\xff\xff\x80\x80\0\0"), (255, 128, 0)),
    "alpha 0 hides its red": (encoded(HIDDEN, "PNG"), WHITE),
    "alpha 255": (encoded(Image.new("RGBA", (2, 2), (*RED, 255)), "PNG"), RED),
    "half alpha": (encoded(Image.new("RGBA", (2, 2), (255, 0, 0, 128)), "PNG"), (255, 127, 127)),
    "grey and alpha 0": (encoded(Image.new("LA", (2, 2), (0, 0)), "PNG"), WHITE),
    "palette": (encoded(Image.new("RGB", (2, 2), BLUE).convert("P"), "PNG"), BLUE),
    "clear colour": (encoded(Image.new("RGB", (2, 2), BLUE), "PNG", transparency=BLUE), WHITE),
    "webp": (encoded(Image.new("RGB", (2, 2), GREEN), "WEBP", lossless=True), GREEN),
    "webp, alpha 0": (encoded(HIDDEN, "WEBP", lossless=True, exact=True), WHITE),
    "bmp": (encoded(Image.new("RGB", (2, 2), BLUE), "BMP"), BLUE),
    "tiff": (encoded(Image.new("RGB", (2, 2), BLUE), "TIFF"), BLUE),
    "16-bit tiff": (encoded(Image.new("I;16", (2, 2), 128 * 257), "TIFF"), GREY),
}  # fmt: skip


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_pixels(name: str) -> None:
    data, expected = GOLDEN[name]
    assert pixel(data) == expected


def test_transparent_palette_is_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *BLUE])
    image.putdata([0, 1])
    data = encoded(image, "PNG", transparency=0)
    assert (pixel(data, 0), pixel(data, 1)) == (WHITE, BLUE)


def test_animation_gives_its_first_frame_and_is_counted() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, GREEN, BLUE)]
    for kind in ("GIF", "WEBP", "PNG"):
        lossless = {"lossless": True} if kind == "WEBP" else {}
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **lossless)
        assert probe(data).frames == 3
        assert pixel(data) == RED


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    from PIL import ImageOps

    data = encoded(photo(), kind, exif=exif(orientation))
    expected = np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    found = decode(data).permute(1, 2, 0).numpy()
    header = probe(data)
    assert (header.height, header.width) == expected.shape[:2] == found.shape[:2]
    assert np.abs(found.astype(int) - expected).max() <= 2
    assert header.rotated == (orientation != 1) or kind == "TIFF"  # PIL turns a TIFF on loading


@pytest.mark.parametrize(
    "damage", [b"", b"II*\0", b"XX*\0\x08\0\0\0\x01\0", b"II*\0\xff\xff\xff\xff"]
)
def test_damaged_exif_means_upright(damage: bytes) -> None:
    data = encoded(photo(), "JPEG", exif=b"Exif\0\0" + damage)
    assert not probe(data).rotated
    assert decode(data).shape == (3, 32, 48)


@pytest.mark.parametrize("size", [(1, 1), (10_000, 1), (1, 10_000)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_extreme_shapes(kind: str, size: tuple[int, int]) -> None:
    data = encoded(Image.new("RGB", size, GREY), kind)
    assert decode(data).shape == (3, size[1], size[0])
    assert (probe(data).width, probe(data).height) == size


def test_data_after_the_end_is_ignored() -> None:
    data = encoded(photo(), "JPEG")
    assert torch.equal(decode(data + b"thumbnail" * 1000), decode(data))


def test_every_call_gives_the_same_pixels_in_any_thread() -> None:
    from concurrent.futures import ThreadPoolExecutor

    data = [encoded(photo(40 + n), "JPEG") for n in range(8)]
    with ThreadPoolExecutor(4) as pool:
        assert all(map(torch.equal, pool.map(decode, data), map(decode, data)))


def test_threads_share_a_budget_of_pixels() -> None:
    """No more than 10 pixels at a time, and nobody waits for ever."""
    from concurrent.futures import ThreadPoolExecutor

    budget, held, most = images._Budget(10), [0], [0]

    def work(pixels: int) -> None:
        with budget.hold(pixels):
            held[0] += min(pixels, 10)
            most[0] = max(most[0], held[0])
            held[0] -= min(pixels, 10)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, [1, 7, 3, 10, 25, 9, 2] * 50))
    assert most[0] <= 10
    assert budget.free == 10
    with pytest.raises(BadImage), budget.hold(4):
        raise BadImage("inside")
    assert budget.free == 10


# --- one readable reason ------------------------------------------------------------------------


def test_reasons() -> None:
    jpeg, image = encoded(photo(), "JPEG"), encoded(photo(), "PNG")
    assert reason(b"") == "empty file"
    assert reason(b"\n<!DOCTYPE html><html>") == "not an image (begins with '<!DOCTYPE html')"
    assert reason(b"RIFF1234WAVEfmt ") == "not an image (a RIFF file without WebP)"
    assert reason(jpeg[: len(jpeg) // 2]) == "truncated JPEG"
    assert reason(jpeg[:10]) == "truncated JPEG"
    assert reason(image[: len(image) // 2]) == "truncated PNG"
    assert reason(b"\xff\xd8\xff" + bytes(100)).startswith("corrupt JPEG")
    assert reason(image[:60] + b"\xff" + image[61:]).startswith("corrupt PNG")


def test_corrupted_jpeg_that_pil_accepts_is_refused() -> None:
    data = bytearray(encoded(photo(256, 256), "JPEG", quality=90))
    middle = len(data) // 2
    data[middle : middle + 200] = bytes(range(200))
    Image.open(io.BytesIO(data)).convert("RGB")  # no error
    assert reason(bytes(data)).startswith("corrupt JPEG")


def test_a_jpeg_cut_anywhere_is_refused() -> None:
    data = encoded(photo(), "JPEG")
    for length in range(len(data)):
        with pytest.raises(BadImage):
            decode(data[:length])


def test_a_second_frame_cannot_hide_behind_the_first() -> None:
    """A marker without a length would let our walk and libjpeg's see different frames."""
    data = encoded(photo(), "JPEG")
    forged = data[:2] + b"\xff\xd0\x00\x08" + data[2:]
    assert reason(forged) == "corrupt JPEG (no frame header)"


def bombs() -> dict[str, bytes]:
    jpeg = bytearray(encoded(photo(), "JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 20_000, 20_000)
    gif = bytearray(encoded(photo(), "GIF"))
    gif[6:10] = struct.pack("<HH", 20_000, 20_000)
    webp = b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + (19_999).to_bytes(3, "little") * 2
    return {
        "PNG": png(20_000, 20_000, 8, 2, b"\0"),
        "JPEG": bytes(jpeg),
        "GIF": bytes(gif),
        "WEBP": webp,
    }


@pytest.mark.parametrize("kind", bombs())
def test_bomb_is_refused_from_its_header(kind: str) -> None:
    data = bombs()[kind]
    for function in (decode, probe):
        with pytest.raises(BadImage, match=r"^400\.0 megapixels is above the limit of 64$"):
            function(data)


def test_bomb_needs_no_memory() -> None:
    """A 400-megapixel PNG in a process that may not take 300 MB more than it has."""
    rows = zlib.compress(b"\0" * (20_000 * 3 + 1))
    assert len(rows) < 1_000
    program = """
import resource, sys
from trainables.media.images import BadImage, decode
taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + 300 * 2**20,) * 2)
try:
    decode(sys.stdin.buffer.read())
except BadImage as error:
    print(error)
"""
    bomb = png(20_000, 20_000, 8, 2, b"\0" * (20_001 * 3))
    if sys.platform != "linux":
        pytest.skip("needs RLIMIT_AS and /proc")
    done = subprocess.run(
        [sys.executable, "-c", program], input=bomb, capture_output=True, check=True
    )
    assert done.stdout == b"400.0 megapixels is above the limit of 64\n"


def test_bands_join_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    clear = photo(mode="P")
    for data in (
        encoded(photo(mode="RGBA"), "PNG"),
        encoded(clear, "PNG", transparency=clear.getpixel((5, 5))),
        encoded(photo(mode="CMYK"), "JPEG"),
        png(1, 3, 16, 0, b"\0\x01\x00\0\x20\x00\0\xff\xff", b"tRNS\x01\x00"),
    ):
        monkeypatch.setattr(images, "_BAND", 10**6)
        whole = decode(data)
        for pixels in (1, 100, 500):
            monkeypatch.setattr(images, "_BAND", pixels)
            assert torch.equal(decode(data), whole)


def test_size_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(photo(48, 32), "PNG")
    monkeypatch.setattr(image_headers, "MAX_PIXELS", 48 * 32)
    assert decode(data).shape == (3, 32, 48)
    monkeypatch.setattr(image_headers, "MAX_PIXELS", 48 * 32 - 1)
    assert "above the limit" in reason(data)
    monkeypatch.setattr(image_headers, "MAX_BYTES", len(data) - 1)
    assert "MiB is above the limit" in reason(data)


def test_samples_without_a_white_are_refused() -> None:
    assert "floating-point" in reason(encoded(Image.new("F", (2, 2), 0.5), "TIFF"))
    assert "outside 0 to 65535" in reason(encoded(Image.new("I", (2, 2), 70_000), "TIFF"))


SEEDS = [encoded(photo(), kind) for kind in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF")]


@settings(max_examples=150, deadline=None)
@given(seed=st.sampled_from(SEEDS), data=st.data())
def test_fuzz_only_ever_bad_image(seed: bytes, data: st.DataObject) -> None:
    """A valid file with some bytes changed and its end cut off: pixels, or a reason."""
    damaged = bytearray(seed[: data.draw(st.integers(0, len(seed)))])
    for place, value in data.draw(
        st.lists(st.tuples(st.integers(0, len(seed) - 1), st.integers(0, 255)), max_size=8)
    ):
        if place < len(damaged):
            damaged[place] = value
    try:
        found = decode(bytes(damaged))
    except BadImage:
        return  # anything else is a crash
    assert found.dtype == torch.uint8
    assert found.shape == (3, probe(bytes(damaged)).height, probe(bytes(damaged)).width)
