"""The name of a feature store, and the facts of its manifest: towers, frames and precision.

Flows in: a store's folder, or what a store is about to be made of. Flows out: its key, or one fact.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trainables.data.shards import POOL, ShardSet
from trainables.data.store import FORMAT, MANIFEST, read_manifest
from trainables.features.frames import STILLS, Frames, clip_versions
from trainables.files import sha256_json
from trainables.hardware import Resolved
from trainables.media.preprocess import decoder_versions
from trainables.models.backbone import Backbone
from trainables.models.cleaning import versions

if TYPE_CHECKING:
    pass

Row = Mapping[str, Any]


def features_key(
    backbone: Backbone,
    shards: ShardSet,
    views: int = 0,
    data_seed: int = 0,
    pixels: bool = False,
    frames: Frames = STILLS,
) -> str:
    """A store's name, a hash that differs with weights, preprocessing, decoder, data or
    precision."""
    parts = {
        **{"format": FORMAT, "backbone": backbone.fingerprint, "shards": shards.digest},
        **{"preprocess": asdict(backbone.preprocess), "decoder": decoder_versions()},
        **{"views": views, "data_seed": data_seed, "pixels": pixels},
    }
    if frames.count:
        parts |= {"frames": frames.count, "sampling": frames.rule}
    if frames.count or shards.notes.get("clips"):
        parts |= {"clips": clip_versions()}
    if cleaning := versions(backbone.cleaning):
        parts |= {"cleaning": cleaning}
    if backbone.precision != "fp32":
        parts |= {"precision": backbone.precision}
    return sha256_json(parts)[:16]


def towers_of(folder: Path) -> Literal["embeddings", "the text tower", "both towers"]:
    """The part of CLIP that a store lets an adapter run through: the image tower needs the store's
    pixels, and finished embeddings may have come without a text tower."""
    manifest = _about(folder)
    if "embeddings" not in manifest:
        return "both towers" if manifest.get("pixels", True) else "the text tower"
    return "the text tower" if manifest["text_tower"] else "embeddings"


def embedded(folder: Path) -> bool:
    """Whether a store came as finished embeddings."""
    return "embeddings" in _about(folder)


def divided_by_draws(folder: Path) -> bool:
    """Whether a store has no splits of its own, so that draws divide its rows."""
    return POOL in _about(folder).get("splits", {})


def _about(folder: Path) -> dict[str, Any]:
    """The manifest of a store, empty where there is none: `open_features` refuses such a store."""
    return read_manifest(folder) if (folder / MANIFEST).is_file() else {}


def frames_of(folder: Path) -> Frames:
    """The number of frames, and the rule, by which a store saw its clips."""
    manifest = read_manifest(folder)
    return Frames(manifest.get("frames", 0), manifest.get("sampling", "uniform"))


def precision_of(folder: Path) -> Resolved:
    """The precision that a store's features were computed in."""
    precision: Resolved = read_manifest(folder).get("precision", "fp32")
    return precision
