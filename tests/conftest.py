"""What the tests share: one tiny backbone with its feature store, and Ray kept quiet."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

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
