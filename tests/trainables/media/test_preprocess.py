"""Pixels against Hugging Face's own (PIL) processors, and views as pure functions."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from tests import ROOT
from tests.tiny import tiny_clip
from trainables.errors import ConfigError
from trainables.files import read_json, write_json
from trainables.media.images import decode
from trainables.media.preprocess import (
    CLIP_MEAN,
    CLIP_STD,
    Preprocess,
    View,
    read_preprocess,
    view_of,
)

DATA = ROOT.parent / "shared" / "data"
CLIP = Preprocess("crop", 224, 224, "bicubic", CLIP_MEAN, CLIP_STD)
SHAPES = [(300, 500), (224, 224), (225, 224), (500, 333), (100, 77), (64, 64), (17, 200), (900, 61)]


def noise(height: int, width: int) -> Tensor:
    random = torch.Generator().manual_seed(height * width)
    return torch.randint(256, (3, height, width), dtype=torch.uint8, generator=random)


def levels_off(ours: Tensor, image: Tensor, processor: object) -> int:
    """The largest difference from the processor's pixels, in grey levels."""
    reference = processor(  # type: ignore[operator]
        images=image.permute(1, 2, 0).numpy(), input_data_format="channels_last"
    )["pixel_values"][0]
    return int(np.abs(ours.numpy().astype(int) - np.asarray(reference).round().astype(int)).max())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("resize", [224, 256])
def test_crop_equals_clips_processor(shape: tuple[int, int], resize: int) -> None:
    processor = CLIPImageProcessorPil(
        do_normalize=False, do_rescale=False, size={"shortest_edge": resize}
    )
    image = noise(*shape)
    ours = replace(CLIP, resize=resize).apply(image)
    assert ours.shape == (3, 224, 224)
    assert levels_off(ours, image, processor) == 0


@pytest.mark.parametrize("shape", SHAPES)
def test_squash_equals_siglips_processor(shape: tuple[int, int]) -> None:
    processor = SiglipImageProcessorPil(do_normalize=False, do_rescale=False)
    image = noise(*shape)
    ours = replace(CLIP, kind="squash").apply(image)
    assert levels_off(ours, image, processor) == 0


def test_real_photos_equal_clips_processor_from_file_to_pixels() -> None:
    if not DATA.is_dir():
        pytest.skip("real photos are not here (../shared/data)")
    photos = sorted((DATA / "flickr8k" / "original_size").glob("*.jpg"))[:8]
    photos += sorted((DATA / "eurosat" / "2750" / "Forest").glob("*.jpg"))[:4]
    assert len(photos) == 12
    processor = CLIPImageProcessorPil(do_normalize=False, do_rescale=False)
    for photo in photos:
        data = photo.read_bytes()
        pil = np.array(Image.open(BytesIO(data)).convert("RGB"))  # (H, W, 3)
        ours = CLIP.apply(decode(data))
        assert levels_off(ours, torch.from_numpy(pil).permute(2, 0, 1), processor) <= 1


def test_normalise_equals_clips_processor() -> None:
    image = noise(224, 224)
    reference = CLIPImageProcessorPil()(images=image.permute(1, 2, 0).numpy(), return_tensors="pt")
    ours = CLIP.normalise(CLIP.apply(image)[None])
    torch.testing.assert_close(ours, reference["pixel_values"].float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1), (1, 200_000), (200_000, 1), (2, 3)])
def test_extreme_shapes_have_a_result(shape: tuple[int, int]) -> None:
    image = torch.full((3, *shape), 77, dtype=torch.uint8)
    assert (CLIP.apply(image) == 77).all()
    assert (CLIP.apply(image, view_of(0, 0, 0)) == 77).all()


def test_view_is_a_pure_function_of_seed_epoch_and_index() -> None:
    view = view_of(3, 5, 7)
    assert view == view_of(3, 5, 7)
    others = {view_of(s, e, i) for s in range(4) for e in range(6) for i in range(8)}
    assert len(others) == 4 * 6 * 8
    assert view in {view_of(3, 5, i) for i in range(8)}
    image = noise(60, 90)
    assert torch.equal(CLIP.apply(image, view), CLIP.apply(image, view_of(3, 5, 7)))
    assert not torch.equal(CLIP.apply(image, view), CLIP.apply(image, view_of(3, 6, 7)))


def test_view_statistics() -> None:
    views = [view_of(0, 0, i, (0.5, 1.0)) for i in range(2000)]
    for name, low, high in (
        ("area", 0.5, 1),
        ("ratio", 3 / 4, 4 / 3),
        ("top", 0, 1),
        ("left", 0, 1),
    ):
        values = np.array([getattr(view, name) for view in views])
        assert low <= values.min() < low + 0.01
        assert high - 0.01 < values.max() <= high
    assert 0.45 < np.mean([view.flip for view in views]) < 0.55


def test_view_crops_and_flips_what_it_says() -> None:
    image = noise(40, 80)
    pre = replace(CLIP, size=20)
    corner = View(area=0.125, ratio=1.0, top=0.0, left=0.999, flip=False)  # 20 x 20 of 40 x 80
    assert torch.equal(pre.apply(image, corner), image[:, :20, 60:])
    flipped = replace(corner, flip=True)
    assert torch.equal(pre.apply(image, flipped), image[:, :20, 60:].flip(2))


def rewrite(folder: Path, **changes: object) -> Path:
    path = folder / "preprocessor_config.json"
    config = read_json(path)
    kept = {k: v for k, v in (config | changes).items() if v != "absent"}
    write_json(path, kept)
    return folder


@pytest.mark.parametrize(
    ("changes", "kind", "size", "resize"),
    [
        ({}, "crop", 32, 32),
        ({"size": 40, "crop_size": 32}, "crop", 32, 40),  # as in OpenAI's own repositories
        ({"size": {"shortest_edge": 36}}, "crop", 32, 36),
        ({"size": {"height": 32, "width": 32}, "do_center_crop": False}, "squash", 32, 32),
    ],
)
def test_config_spellings(
    tmp_path: Path, changes: dict[str, object], kind: str, size: int, resize: int
) -> None:
    pre = read_preprocess(rewrite(tiny_clip(tmp_path), **changes), "clip")
    assert (pre.kind, pre.size, pre.resize) == (kind, size, resize)


def test_defaults_are_those_of_the_model_kind(tmp_path: Path) -> None:
    write_json(tmp_path / "preprocessor_config.json", {})
    clip, siglip = read_preprocess(tmp_path, "clip"), read_preprocess(tmp_path, "siglip")
    assert (clip.kind, clip.mean, clip.size) == ("crop", CLIP_MEAN, 224)
    assert (siglip.kind, siglip.mean, siglip.size) == ("squash", (0.5, 0.5, 0.5), 224)


def test_processor_config_of_transformers_5_is_read(tmp_path: Path) -> None:
    folder = tiny_clip(tmp_path)
    expected = read_preprocess(folder, "clip")
    old = folder / "preprocessor_config.json"
    write_json(folder / "processor_config.json", {"image_processor": read_json(old)})
    old.unlink()
    assert read_preprocess(folder, "clip") == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"do_resize": False}, "`do_resize`"),
        ({"do_normalize": False}, "`do_normalize`"),
        ({"rescale_factor": 1.0}, "`rescale_factor`.*1/255, got 1.0"),
        ({"resample": 0}, "`resample`.*got 0"),
        ({"crop_size": {"height": 32, "width": 30}}, "`crop_size`.*square of at most 32"),
        ({"crop_size": 64}, "`crop_size`.*square of at most 32"),
        ({"size": {"longest_edge": 32}}, "`size`.*shortest edge"),
        ({"size": {"height": 3, "width": 4}, "do_center_crop": False}, "`size`.*square"),
        ({"image_mean": [0.5]}, "`image_mean`"),
    ],
)
def test_what_cannot_be_done_exactly_is_refused(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        read_preprocess(rewrite(tiny_clip(tmp_path), **changes), "clip")
