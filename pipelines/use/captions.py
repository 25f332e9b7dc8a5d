"""Captions of image and clip files by a trained captioner.

Flows in: a model and paths. Flows out: one row a file; of a clip that is long, one a segment.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from pipelines.use.embedding import embed_files
from pipelines.use.files import CHUNK, FEW, Faults, find
from pipelines.use.given import is_given
from pipelines.use.model import Model
from trainables.features.frames import embed_clip
from trainables.media.clips import SUFFIXES, Clip, is_clip, segments
from trainables.media.image_headers import BadImage, read_file
from trainables.training.predict import in_use

Row = dict[str, Any]  # path, caption; of a segment start and end in seconds too
MAYBE_CLIPS = frozenset({".gif", ".png", ".webp"})  # images that may be animated


def caption_files(
    model: Model, given: Sequence[Path], seconds: float, faults: Faults, frames: bool = False
) -> list[Row]:
    """The rows of all good files, in the order in which they were given. With `frames` a folder is
    one clip."""
    paths = find(given, faults, SUFFIXES, whole=frames)
    vectors = {path for path in paths if is_given(path) and not (frames and path.is_dir())}
    clips = {path for path in paths if path not in vectors and (path.is_dir() or _is_clip(path))}
    stills = [path for path in paths if path not in clips | vectors]
    rows = {Path(row["path"]): [row] for row in _stills(model, stills, faults)}
    rows |= {path: _stills(model, [path], faults) for path in vectors}
    moving = [path for path in paths if path in clips]
    for path in tqdm(moving, unit="clip", desc="caption", disable=len(moving) <= FEW):
        try:
            rows[path] = _clip(model, path, seconds)
        except BadImage as error:
            faults.add(path, str(error))
    return [row for path in paths for row in rows.get(path, [])]


def _is_clip(path: Path) -> bool:
    suffix = path.suffix.lower()
    if suffix not in MAYBE_CLIPS:
        return suffix in SUFFIXES
    try:
        return bool(is_clip(read_file(path)))
    except BadImage:  # told when it is read as an image
        return False


def _stills(model: Model, paths: Sequence[Path], faults: Faults) -> list[Row]:
    """A still image is a clip whose frames are all the same; of embeddings, each row is one."""
    rows: list[Row] = []
    for names, data in embed_files(model.adapter, paths, faults, "caption"):
        texts: list[str] = []
        for embeds in data.image_embeds.split(CHUNK):
            texts += write(model, embeds[:, None].expand(-1, max(1, model.seen.count), -1))
        rows += [
            {"path": str(path), "caption": text} for path, text in zip(names, texts, strict=True)
        ]
    return rows


def _clip(model: Model, path: Path, seconds: float) -> list[Row]:
    """A captioner of still images sees a segment's middle frame."""
    clip, seen = Clip.open(path), model.seen
    spans = segments(clip, seconds)
    count = max(1, seen.count)
    frames = [embed_clip(model.backbone, clip, count, seen.rule, span) for span in spans]
    texts = write(model, torch.stack(frames))
    if len(spans) == 1:
        return [{"path": str(path), "caption": texts[0]}]
    return [
        {"path": str(path), "start": start, "end": end, "caption": text}
        for (start, end), text in zip(spans, texts, strict=True)
    ]


def write(model: Model, frames: Tensor) -> list[str]:
    """Captions of clips by their frames' embeddings (B, F, e); F is 1 for captioners of stills."""
    frames = frames.to(model.backbone.device)
    with in_use(model.adapter):
        return model.adapter.captions(frames.mean(1), frames if model.seen.count else None)
