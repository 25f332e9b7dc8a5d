"""What the tests share: one tiny backbone with its feature store, and Ray kept quiet."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from trainables.data.batches import Batch
    from trainables.models.backbone import Backbone

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random CLIP in Hugging Face layout."""
    from tests.tiny import tiny_clip

    return tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="session")
def features(tmp_path_factory: pytest.TempPathFactory, clip: Path) -> Path:
    """A feature store made for that CLIP, with pixels: 48 train and 16 val images."""
    from tests.tiny import tiny_features

    return tiny_features(
        tmp_path_factory.mktemp("features"), images=48, val=16, pixels=True, clip=clip
    )


@pytest.fixture(autouse=True, scope="session")
def notes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Path]]:
    """What files were found whole is noted where no other run looks; where else it would be."""
    from trainables.data import verified

    place, plain = tmp_path_factory.mktemp("notes"), verified.notes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verified, "notes", lambda: place)
        yield plain


@pytest.fixture
def bf16_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU for which bf16 pays. Where it does not, the numbers are the same, only later."""
    from trainables import hardware

    (tmp_path / "cpuinfo").write_text("flags : fpu amx_bf16\n")
    monkeypatch.setattr(hardware, "CPUINFO", tmp_path / "cpuinfo")


@pytest.fixture(scope="module")
def backbone(clip: Path) -> Backbone:
    """That CLIP, loaded anew for each module of tests."""
    from trainables.models.load import load_backbone

    return load_backbone(str(clip))


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """A random SigLIP."""
    from tests.tiny import tiny_siglip
    from trainables.models.load import load_backbone

    return load_backbone(str(tiny_siglip(tmp_path_factory.mktemp("siglip"))))


@pytest.fixture(scope="module")
def batch(backbone: Backbone) -> Batch:
    """The contract tests' fixed batch."""
    from tests.contract import batch_for

    return batch_for(backbone)
