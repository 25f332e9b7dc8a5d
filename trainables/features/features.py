"""Features once: what the frozen image tower makes of every image, and the captions as ids.

Flows in: a feature store's folder (written by `cliptune encode`), or shards to embed right here.
Flows out: `SplitFeatures`. A store is mapped, not read: all trials of a search share its pages.

A store holds `train.safetensors` and `val.safetensors`, the images' ids as JSON, and a manifest,
written last.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from trainables.data.batches import Tokens
from trainables.data.shards import POOL, Seal, ShardSet, captions_of, chunks
from trainables.data.store import FORMAT, MANIFEST, again, check_file, hashes, read_manifest
from trainables.errors import DataError, unknown
from trainables.features.classes import Classes
from trainables.features.frames import STILLS, Frames, clip_versions, embed_frames
from trainables.features.lazy_parts import LazyParts
from trainables.features.neighbours import nearest_images
from trainables.features.texts import TEXT_COLUMNS, read_texts
from trainables.files import read_json, sha256_json
from trainables.hardware import Resolved
from trainables.media.preprocess import decoder_versions
from trainables.metrics.captioning import References
from trainables.models.backbone import Backbone
from trainables.models.cleaning import versions
from trainables.models.image_tower import frozen_embeds
from trainables.models.load import load_backbone

if TYPE_CHECKING:
    from trainables.models.language_model import LanguageModel

Row = Mapping[str, Any]


@dataclass(frozen=True)
class SplitFeatures:
    """One split: N images and their M captions. View 0 of an image is the clean one, of which the
    store holds the embedding; all else is `lazy` when it is asked for.

    `take` makes a part of one a task of classification: its images then have labels. What captions
    are measured on has `one_row_an_image`.
    """

    ids: list[str]  # N
    image_embeds: Tensor  # (N, e) float32, or float16 as given; not normalised
    pixels: Tensor | None  # (N, 3, R, R) uint8
    tokens: Tokens  # M captions
    caption_rows: Tensor  # (M,) int64, ascending: the image of each caption
    groups: Tensor  # (N,) int64: equal where the images' bytes are
    truncated: int = 0  # captions that were cut to the text tower's length
    views: int = 0  # augmented ones, which training shows in turn
    lazy: LazyParts | None = None
    nearest: dict[int, Tensor] = field(default_factory=dict)  # what `neighbours` has found
    whole: SplitFeatures | None = None  # what this is a part of
    source: Tensor | None = None  # (N,) int64: of a part, the rows of the whole
    said: Tensor | None = None  # (M,) int64: of a part, the captions of the whole
    labels: Tensor | None = None  # (N,) int64
    classes: Classes | None = None  # C
    frame_embeds: Tensor | None = None  # (N, F, e) float32; `image_embeds` are then their means
    others: tuple[SplitFeatures, ...] = ()  # labelled parts of the same split, of other classes
    given_texts: Tensor | None = None  # (M, e) embeddings of the captions, where given as such

    def take(self, examples: Mapping[str, int], classes: Classes) -> SplitFeatures:
        """The images with these ids as examples of classes, by label; `pixels` stay the whole's."""
        rows = torch.tensor([n for n, id_ in enumerate(self.ids) if id_ in examples])
        if len(rows) < len(examples):
            missing = sorted(examples.keys() - set(self.ids))[0]
            raise DataError(f"image `{missing}` of the draw is not in the feature store.")
        captions = torch.isin(self.caption_rows, rows).nonzero()[:, 0]
        part = self._part(rows, captions, torch.searchsorted(rows, self.caption_rows[captions]))
        labels = torch.tensor([examples[id_] for id_ in part.ids])
        return replace(part, labels=labels, classes=classes, others=())

    def one_row_an_image(self) -> SplitFeatures:
        """Each image once, by its first row, with the captions of all rows of its bytes. A caption
        that an earlier row has is not taken again; what one row says twice stays twice.

        Whether a source repeats an image for each caption is then without effect on what is
        measured. Rows of the same bytes under different labels stay apart.
        """
        labels = torch.zeros_like(self.groups) if self.labels is None else self.labels
        which = list(zip(self.groups.tolist(), labels.tolist(), strict=True))  # N
        rows: dict[tuple[int, int], int] = {}  # the first of each image
        for row, one in enumerate(which):
            rows.setdefault(one, row)
        if len(rows) == len(which):
            return self
        place = {one: number for number, one in enumerate(rows)}
        image = [place[one] for one in which]  # N
        texts = self._comparable()
        known: list[Counter[Hashable]] = [Counter() for _ in rows]  # of each image, so far
        own: list[Counter[Hashable]] = [Counter() for _ in image]  # of each row
        kept = []
        for caption, row in enumerate(self.caption_rows.tolist()):
            text, said = texts[caption], known[image[row]]
            own[row][text] += 1
            if own[row][text] > said[text]:
                said[text] += 1
                kept.append((image[row], caption))
        caption_rows, captions = torch.tensor(sorted(kept), dtype=torch.int64).view(-1, 2).T
        return self._part(torch.tensor(list(rows.values())), captions, caption_rows)

    def _comparable(self) -> Sequence[Hashable]:
        """Equal where captions are: embeddings given as such may have come without words."""
        if self.given_texts is None:
            return self.texts()
        return [embed.numpy().tobytes() for embed in self.given_texts]

    def _part(self, rows: Tensor, captions: Tensor, caption_rows: Tensor) -> SplitFeatures:
        """Images `rows` (N,) with `captions` (M,), which are those of its images `caption_rows`."""
        return replace(
            self,
            ids=[self.ids[row] for row in rows.tolist()],
            image_embeds=self.image_embeds[rows].float(),
            frame_embeds=None if self.frame_embeds is None else self.frame_embeds[rows],
            tokens=self.tokens.select(captions),
            caption_rows=caption_rows,
            groups=self.groups[rows],
            labels=None if self.labels is None else self.labels[rows],
            nearest={},
            whole=self.whole or self,
            source=rows if self.source is None else self.source[rows],
            said=captions if self.said is None else self.said[captions],
            given_texts=None if self.given_texts is None else self.given_texts[captions].float(),
        )

    def embeds(self, rows: Tensor, view: int = 0) -> Tensor:
        """The frozen image tower's outputs for a view of `rows` (B,): (B, e)."""
        if view == 0:
            return self.image_embeds[rows].float()
        embeds: Tensor = self._more.view(view)["image_embeds"][self._whole(rows)]
        return embeds

    def _whole(self, rows: Tensor) -> Tensor:
        return rows if self.source is None else self.source[rows]

    def text_embeds(self) -> Tensor:
        """The frozen text tower's outputs for all captions: (M, e)."""
        if self.given_texts is not None:
            return self.given_texts
        if self.whole is not None and self.said is not None:
            return self.whole.text_embeds()[self.said]
        return self._more.text_embeds(self.tokens)

    def texts(self) -> list[str]:
        """All captions as they were written: M."""
        texts = self._more.texts()
        return texts if self.said is None else [texts[row] for row in self.said.tolist()]

    def words(self, lm: LanguageModel) -> Tokens:
        """All captions in a language model's own tokens, each with its end token: M."""
        words = self._more.words(lm)
        return words if self.said is None else words.select(self.said)

    def texts_of_images(self) -> list[list[str]]:
        """The captions of each image, as they were written: N."""
        every: list[list[str]] = [[] for _ in self.ids]
        for row, text in zip(self.caption_rows.tolist(), self.texts(), strict=True):
            every[row].append(text)
        return every

    @cached_property
    def references(self) -> References:
        """What captions of a model are measured against: N."""
        return References(self.texts_of_images())

    def hidden(self, rows: Tensor, view: int, block: int) -> Tensor:
        """The image tower's states before block `block` for a view of `rows` (B,): (B, S, w)."""
        if self.pixels is None:
            raise DataError(
                "adapters of the image tower need pixels, the feature store has none: "
                "`cliptune encode --pixels`."
            )
        pixels = self.pixels if view == 0 else self._more.view(view)["pixels"]
        return self._more.hidden(pixels, self._whole(rows), view, block)

    def neighbours(self, k: int) -> Tensor:
        """`nearest_images` of all clean views, once a process: (N, k) int64."""
        if k not in self.nearest:
            self.nearest[k] = nearest_images(self.image_embeds, k, self.groups)
        return self.nearest[k]

    @property
    def _more(self) -> LazyParts:
        if self.lazy is None:
            raise ValueError("these features were opened without their backbone.")
        return self.lazy


def features_key(
    backbone: Backbone,
    shards: ShardSet,
    views: int = 0,
    data_seed: int = 0,
    pixels: bool = False,
    frames: Frames = STILLS,
) -> str:
    """A store's name: another one for any change of weights, preprocessing, decoder, data or
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
    """What a store lets an adapter go through: the image tower reads its pixels, and finished
    embeddings may have come without a text tower."""
    manifest = _about(folder)
    if "embeddings" not in manifest:
        return "both towers" if manifest.get("pixels", True) else "the text tower"
    return "the text tower" if manifest["text_tower"] else "embeddings"


def embedded(folder: Path) -> bool:
    """Whether a store came as finished embeddings."""
    return "embeddings" in _about(folder)


def divided_by_draws(folder: Path) -> bool:
    """Whether a store has no splits of its own."""
    return POOL in _about(folder).get("splits", {})


def _about(folder: Path) -> dict[str, Any]:
    """The manifest of a store; what is not there is refused where it is opened."""
    return read_manifest(folder) if (folder / MANIFEST).is_file() else {}


def frames_of(folder: Path) -> Frames:
    """How a store saw its clips."""
    manifest = read_manifest(folder)
    return Frames(manifest.get("frames", 0), manifest.get("sampling", "uniform"))


def precision_of(folder: Path) -> Resolved:
    """What a store's features were computed in."""
    precision: Resolved = read_manifest(folder).get("precision", "fp32")
    return precision


def backbone_of(folder: Path, device: str = "cpu") -> Backbone:
    """The backbone that a store was made with, its weights unchanged since, in its precision; texts
    are mended where the store's were."""
    manifest = read_manifest(folder)
    for name in hashes(manifest):
        if name.startswith("backbone/"):  # of a store that has its own
            check_file(folder, manifest, name)
    made_with, cleaned = manifest["backbone"], "cleaning" in manifest
    how = (device, precision_of(folder), cleaned)
    backbone = load_backbone(made_with["name"], made_with["revision"], *how)
    if backbone.fingerprint != made_with["fingerprint"]:
        raise DataError(
            f"`{made_with['name']}` has other weights than those of `{folder}`: fingerprint "
            f"{backbone.fingerprint[:12]}, expected {made_with['fingerprint'][:12]}. Restore them, "
            "or run `cliptune encode` again."
        )
    return backbone


def open_features(
    folder: Path | str, split: str, backbone: Backbone | None = None
) -> SplitFeatures:
    """A split of a finished store, mapped: pages are read on first use and shared by processes.

    `backbone`, the store's own, is needed for what is derived on first use.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    name = POOL if POOL in manifest["splits"] and split in ("train", "val") else split
    if name not in manifest["splits"]:
        raise DataError(f"`{folder}`: " + unknown("split", split, manifest["splits"]))
    if backbone is not None:
        _check_own(folder, manifest, backbone)
    lazy = None if backbone is None else LazyParts(backbone, name, folder / "lazy", manifest)
    views = manifest["views"] if split == "train" else 0
    truncated = manifest["splits"][name]["truncated_captions"]
    return _read(folder, manifest, name, truncated, views, lazy)


def _read(
    folder: Path,
    manifest: Mapping[str, Any],
    name: str,
    truncated: int,
    views: int,
    lazy: LazyParts | None,
) -> SplitFeatures:
    """The tensors and ids called `name` of a store, each found whole."""
    path = check_file(folder, manifest, f"{name}.safetensors")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        ids = read_json(check_file(folder, manifest, f"{name}.ids.json"))
        if not isinstance(ids, list) or len(ids) != len(tensors["image_embeds"]):
            raise DataError(f"`{folder / name}.ids.json` must have an id for each image.")
        return SplitFeatures(
            ids=ids,
            image_embeds=tensors["image_embeds"],
            pixels=tensors.get("pixels"),
            frame_embeds=tensors.get("frame_embeds"),
            tokens=Tokens(tensors["token_ids"], tensors["token_offsets"]),
            caption_rows=tensors["caption_rows"],
            groups=tensors["groups"],
            truncated=truncated,
            views=views,
            lazy=lazy,
            given_texts=tensors.get("text_embeds"),
        )
    except (SafetensorError, KeyError) as error:
        raise DataError(f"`{path}` is damaged ({error}); run {again(manifest)}.") from error


def _check_own(folder: Path, manifest: Mapping[str, Any], backbone: Backbone) -> None:
    """All that read the store share what is made with `backbone`."""
    fingerprint, precision = manifest["backbone"]["fingerprint"], manifest.get("precision", "fp32")
    if backbone.fingerprint != fingerprint:
        raise DataError(
            f"`{folder}` was made with the backbone {fingerprint[:12]}, got "
            f"{backbone.fingerprint[:12]}."
        )
    if backbone.precision != precision:
        raise DataError(
            f"`{folder}` was computed in {precision}, the backbone given is in "
            f"{backbone.precision}."
        )
    for name, parameter in backbone.model.named_parameters():
        if parameter.requires_grad:
            raise DataError(
                f"`{folder}` needs its backbone as it was, frozen; in the one given, `{name}` is "
                "trained."
            )


def embed_split(
    backbone: Backbone,
    shards: ShardSet,
    split: str,
    *,
    seal: Seal | None = None,
    pixels: bool = False,
    batch_size: int = 64,
    seen: Frames = STILLS,
    done: Callable[[int], object] = int,
) -> SplitFeatures:
    """Embed the clean view of a split in this process, in memory: what `evaluate` does for test, in
    the precision of `backbone`. What came as finished embeddings is read. `done` is told of images
    as they are embedded."""
    if shards.embedded:
        rows = shards.rows(split, TEXT_COLUMNS, seal)
        kept = {"texts": [text for row in rows for text in captions_of(row)]}
        store, path = shards.folder.parent, shards.embeddings(split, seal)
        name = path.relative_to(store).with_suffix("").as_posix()
        lazy = LazyParts(backbone, split, kept=kept)
        return _read(store, read_manifest(store), name, 0, 0, lazy)
    texts = read_texts(backbone, shards.rows(split, TEXT_COLUMNS, seal))
    embeds, of_frames, squares = [], [torch.zeros(0, seen.count, backbone.embed_dim)], []
    rows = shards.rows(split, ["id", "image"], seal)
    for square in _squares(backbone, rows, max(1, batch_size // max(1, seen.count)), seen):
        if seen.count:
            means, each = embed_frames(backbone, square)
            embeds.append(means)
            of_frames.append(each)
        else:
            embeds.append(frozen_embeds(backbone, square))
        if pixels:
            squares.append(square)
        done(len(square))
    size = backbone.preprocess.size
    return SplitFeatures(
        ids=texts.ids,
        image_embeds=torch.cat([torch.zeros(0, backbone.embed_dim), *embeds]),
        pixels=torch.cat([torch.zeros(0, 3, size, size, dtype=torch.uint8), *squares])
        if pixels
        else None,
        frame_embeds=torch.cat(of_frames) if seen.count else None,
        tokens=texts.tokens,
        caption_rows=texts.caption_rows,
        groups=texts.groups,
        truncated=texts.truncated,
        lazy=LazyParts(backbone, split, kept={"texts": texts.texts}),
    )


def _squares(
    backbone: Backbone, rows: Iterable[Row], batch_size: int, frames: Frames
) -> Iterator[Tensor]:
    for chunk in chunks(rows, batch_size):
        yield torch.stack([frames.squares(backbone.preprocess, row["image"]) for row in chunk])
