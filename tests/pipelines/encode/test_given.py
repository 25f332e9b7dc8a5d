"""`cliptune encode --embeddings`: a store of vectors that were made elsewhere."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save as save_tensors
from safetensors.torch import save_file
from torch.nn import functional as F

from pipelines.arena import __main__ as arena
from pipelines.arena.flags import plan_of
from pipelines.arena.plan import store_of, write_plan
from pipelines.arena.tuning import Arena, CellSearch
from pipelines.classify.answers import classify
from pipelines.draw.class_names import read_words
from pipelines.draw.labelled import read_labelled
from pipelines.draw.make import Task, make_draw
from pipelines.encode.args import Args
from pipelines.encode.embeddings import encode_given
from pipelines.evaluate.arenas import measure_arena
from pipelines.use.files import Faults
from pipelines.use.model import Model
from trainables.adapters.registry import build, check_towers, make_config
from trainables.data.shards import Seal, ShardSet
from trainables.errors import CliptuneError, ConfigError, DataError
from trainables.features.classes import Classes
from trainables.features.features import backbone_of, embed_split, open_features
from trainables.features.few_shot import check_divided
from trainables.files import write_json
from trainables.models.load import load_backbone
from trainables.training.predict import predict

NAMES = ("pond", "Football_Field", "river")
TEMPLATES = ("a photo of a {}.", "a satellite photo of a {}")
WIDTH, ROWS = 16, 60


def vectors(rows: int, seed: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(size=(rows, WIDTH)).astype(np.float16)


def table(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def save(path: Path, array: np.ndarray[Any, Any], **how: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array, **how)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three parts, of which the last is number 10; three classes in two templates."""
    folder = tmp_path / "given"
    folder.mkdir()
    for seed, part in enumerate((0, 2, 10)):
        rows = [
            {"key": f"{part}-{n:02}", "class_name": NAMES[n % 3], "unknown": n} for n in range(ROWS)
        ]
        table(folder / f"metadata/metadata_{part}.parquet", rows)
        save(folder / f"img_emb/img_emb_{part}.npy", vectors(ROWS, seed))
    save(folder / "text_emb/text_emb_0.npy", vectors(6, 9))
    texts = [{"template": t, "class_name": n} for t in TEMPLATES for n in NAMES]
    table(folder / "text_metadata/text_metadata_0.parquet", texts)
    return folder


def encode(folder: Path, **flags: Any) -> Path:
    return encode_given(Args(embeddings=folder, out=folder.parent / "features", **flags))[0]


def test_a_store_holds_the_vectors_as_they_were_given(folder: Path) -> None:
    store = encode(folder)
    shards, backbone = ShardSet.open(store), backbone_of(store)
    given = np.concatenate([vectors(ROWS, seed) for seed in range(3)])
    ids = [f"{part}-{n:02}" for part in (0, 2, 10) for n in range(ROWS)]
    row_of = {id_: row for row, id_ in enumerate(ids)}
    splits = {split: open_features(store, split, backbone) for split in ("train", "val")}
    splits["test"] = embed_split(backbone, shards, "test", seal=Seal("a test"))
    assert sorted(id_ for data in splits.values() for id_ in data.ids) == sorted(ids)
    for data in splits.values():
        assert data.image_embeds.dtype == torch.float16
        rows = [row_of[id_] for id_ in data.ids]
        assert np.array_equal(data.image_embeds.numpy(), given[rows])
        assert data.embeds(torch.arange(2)).dtype == torch.float32
    assert list(shards.classes) == sorted(NAMES)
    assert not (store / "test.safetensors").exists()  # it lies among the sealed records
    with pytest.raises(DataError, match="unknown split"):
        open_features(store, "test")
    assert encode_given(Args(embeddings=folder, out=store.parent)) == (store, False)


def test_texts_of_classes_are_looked_up(folder: Path) -> None:
    backbone = backbone_of(encode(folder))
    texts = torch.from_numpy(vectors(6, 9)).float()
    names = ("Pond", "football field", "river")  # as prompts have them
    one = Classes(names, TEMPLATES[1]).text_embeds(backbone)
    assert torch.allclose(one, F.normalize(texts[3:], dim=-1))
    both = F.normalize(F.normalize(texts[:3], dim=-1) + F.normalize(texts[3:], dim=-1), dim=-1)
    assert torch.allclose(Classes(names, "{}").text_embeds(backbone), both, atol=1e-6)
    with pytest.raises(DataError, match="`a drawing of a Pond` must be one of the 9 texts"):
        Classes(names, "a drawing of a {}").text_embeds(backbone)


def test_a_draw_divides_what_has_no_splits(folder: Path) -> None:
    store = encode(folder, split="draw")
    shards = ShardSet.open(store)
    data = read_labelled(shards)
    words = read_words("default").fitted(shards.templates)
    assert words.template == TEMPLATES[0]
    draw = make_draw(data, Task("given", 8, 1, "all", words))
    assert (len(draw.train), len(draw.val)) == (24, 12)
    backbone = backbone_of(store)
    rows = [*shards.rows("test", ["id", "label"], Seal("a test"))]
    whole = embed_split(backbone, shards, "test", seal=Seal("a test"))
    test = draw.among(whole, rows)
    apart = [{m.id for m in draw.train}, {m.id for m in draw.val}, set(test.ids)]
    assert sum(map(len, apart)) == len(set.union(*apart)) == 3 * ROWS
    other = make_draw(data, Task("given", 8, 2, "all", words))
    assert not set(draw.among(whole, rows, other).ids) & {m.id for m in other.train}
    with pytest.raises(DataError, match="the `test` split is sealed"):
        shards.rows("test", ["id"])
    with pytest.raises(DataError, match="has no splits"):
        check_divided(store, None)
    with pytest.raises(DataError, match="`--shots` must be at least 1"):
        make_draw(data, Task("given", 0, 1, "all", words))


def test_adapters_that_need_a_tower_are_refused(folder: Path) -> None:
    store = encode(folder)
    how = {"task": "classification"}
    check_towers(store, [make_config(n, how) for n in ("zero_shot", "tip_adapter", "linear_probe")])
    with pytest.raises(ConfigError, match=r"`coop` needs the text tower.*`tip_adapter`"):
        check_towers(store, [make_config("coop", how)])
    with pytest.raises(ConfigError, match="`lora` needs both towers"):
        check_towers(store, [make_config("lora", how)])


def _short(folder: Path) -> None:
    save(folder / "img_emb/img_emb_2.npy", vectors(ROWS - 1, 1))


def _nan(folder: Path) -> None:
    array = vectors(ROWS, 1)
    array[7, 3] = np.nan
    save(folder / "img_emb/img_emb_2.npy", array)


def _zero(folder: Path) -> None:
    array = vectors(ROWS, 1)
    array[9] = 0
    save(folder / "img_emb/img_emb_2.npy", array)


def _wide(folder: Path) -> None:
    save(folder / "img_emb/img_emb_2.npy", np.ones((ROWS, WIDTH + 1), np.float16))


def _objects(folder: Path) -> None:
    array = np.array([{"a": 1}] * ROWS, dtype=object)
    save(folder / "img_emb/img_emb_2.npy", array, allow_pickle=True)


def _torch(folder: Path) -> None:
    (folder / "img_emb/img_emb_2.npy").rename(folder / "img_emb/img_emb_2.pt")


def _set(at: tuple[int, ...], value: float, kind: type = np.float16) -> Callable[[Path], None]:
    """A number somewhere in a part of the images."""

    def spoil(folder: Path) -> None:
        array = vectors(ROWS, 1).astype(kind)
        array[at] = value
        save(folder / "img_emb/img_emb_2.npy", array)

    return spoil


def _array(array: np.ndarray[Any, Any]) -> Callable[[Path], None]:
    return lambda folder: save(folder / "img_emb/img_emb_2.npy", array)


def _pickle(folder: Path) -> None:
    (folder / "img_emb/img_emb_2.npy").rename(folder / "img_emb/img_emb_2.pkl")


def _text_nan(folder: Path) -> None:
    array = vectors(6, 9)
    array[4, 2] = np.nan
    save(folder / "text_emb/text_emb_0.npy", array)


def _fewer(folder: Path) -> None:
    table(folder / "metadata/metadata_2.parquet", [{"class_name": "pond"}] * (ROWS - 5))


def _no_part(folder: Path) -> None:
    (folder / "metadata/metadata_2.parquet").unlink()


def _other_number(folder: Path) -> None:
    """As where a part failed on one side, and another on the other side."""
    for name in ("img_emb/img_emb_10.npy", "metadata/metadata_2.parquet"):
        (folder / name).unlink()


def _no_words(folder: Path) -> None:
    """Captions, of which one is empty."""
    for name in ("text_emb/text_emb_0.npy", "text_metadata/text_metadata_0.parquet"):
        (folder / name).unlink()
    rows = [{"caption": " " if n == 7 else "a pond"} for n in range(ROWS)]
    table(folder / "metadata/metadata_2.parquet", rows)


def _twice(folder: Path) -> None:
    texts = [{"template": TEMPLATES[0], "class_name": n} for _ in TEMPLATES for n in NAMES]
    table(folder / "text_metadata/text_metadata_0.parquet", texts)


def _columns_of(**columns: list[Any]) -> Callable[[Path], None]:
    return lambda folder: pq.write_table(pa.table(columns), folder / "metadata/metadata_2.parquet")


def _train_alone(folder: Path) -> None:
    for part in (0, 2, 10):
        rows = [{"key": f"{part}-{n}", "class_name": "pond", "split": "train"} for n in range(ROWS)]
        table(folder / f"metadata/metadata_{part}.parquet", rows)


def _other_classes(folder: Path) -> None:
    texts = [{"template": t, "class_name": n} for t in TEMPLATES for n in ("cat", "dog", "pond")]
    table(folder / "text_metadata/text_metadata_0.parquet", texts)


def _twins(folder: Path) -> None:
    table(
        folder / "metadata/metadata_2.parquet",
        [{"key": "0-01", "class_name": "pond"} for _ in range(ROWS)],
    )


def _leak(folder: Path) -> None:
    array = vectors(ROWS, 1)
    array[3] = vectors(ROWS, 0)[1]
    save(folder / "img_emb/img_emb_2.npy", array)
    for part, split in ((0, "train"), (2, "val"), (10, "test")):
        rows = [{"key": f"{part}-{n}", "class_name": "pond", "split": split} for n in range(ROWS)]
        table(folder / f"metadata/metadata_{part}.parquet", rows)


def _torn(folder: Path) -> None:
    (folder / "metadata/metadata_2.parquet").write_text("none")


def _said(field: str, value: Any) -> Callable[[Path], None]:
    """Row 5 of a part says something else; a column is of one type."""

    def spoil(folder: Path) -> None:
        rows: list[dict[str, Any]] = [{"class_name": NAMES[n % 3]} for n in range(ROWS)]
        rows[5] |= {field: value}
        if field == "class_name" and value is not None:
            rows = [{field: None} for _ in rows]
            rows[5][field] = value
        save(folder / "img_emb/img_emb_2.npy", vectors(ROWS, 1))
        table(folder / "metadata/metadata_2.parquet", [{field: None, **row} for row in rows])

    return spoil


CUT = save_tensors({"image_embeds": torch.ones(60, WIDTH)})[:-50]


def _columnwise() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, image_embeds=np.asfortranarray(vectors(ROWS, 1)))
    return stream.getvalue()


def _loose(data: bytes) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        for path in sorted(folder.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        kind = "npz" if data[:2] == b"PK" else "safetensors"
        (folder / f"v.{kind}").write_bytes(data)

    return spoil


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_short, r"metadata_2.parquet` must have 59 rows, as `img_emb_2.npy` has, got 60"),
        (_nan, r"img_emb_2.npy`, row 7: the vector has NaN"),
        (_zero, r"img_emb_2.npy`, row 9: the vector is zero"),
        (_wide, r"img_emb_2.npy` must have vectors of width 16, .* got 17"),
        (_objects, r"img_emb_2.npy` holds Python objects"),
        (_torch, r"img_emb_2.pt` is refused.*weights_only=True.*numpy.save\(\"img_emb_2.npy\""),
        (_other_classes, r"texts of other classes: none of `Football_Field`"),
        (_twins, r"metadata_2.parquet`, row 0: its id is that of `.*metadata_0.parquet`, row 1;"),
        (
            _leak,
            r"metadata_2.parquet`, row 3: the vector is in val, and again in train \(`.*row 1\)",
        ),
        (_torn, r"metadata_2.parquet` is no valid Parquet file"),
        (_said("class_name", 7), r"metadata_2.parquet`, row 5: class name is not text \(int\)"),
        (_said("class_name", " "), r"metadata_2.parquet`, row 5: class name is empty"),
        (_said("label", "one"), r"row 5: `label` must be a whole number, got 'one'"),
        (_said("label", 3), r"row 5: class `river` must have one label, got None and 3"),
        (_said("caption", 7), r"row 5: caption 1 is not text \(int\)"),
        (_said("caption", ""), r"metadata_2.parquet`, row 5: caption 1 is empty"),
        (_said("caption", ["a pond", " \n"]), r"metadata_2.parquet`, row 5: caption 2 is empty"),
        (_said("caption", "a \0"), r"row 5: caption 1 holds a NUL byte"),
        (_said("split", "trian"), r"metadata_2.parquet`, row 5: unknown split 'trian'"),
        (
            _said("class_name", None),
            r"row 5: image `65` must have a caption or a class name: `class_",
        ),
        (_set((4, 2), np.inf), r"img_emb_2.npy`, row 4: the vector is infinite"),
        (_set((4, 2), 1e200, np.float64), r"img_emb_2.npy`, row 4: the vector is too large"),
        (_set((4,), 1e-30, np.float32), r"img_emb_2.npy`, row 4: the vector is too small"),
        (_array(np.ones(ROWS, np.float16)), r"must hold a matrix of floats.*shape \(60,\)"),
        (_array(np.ones((0, WIDTH), np.float16)), r"img_emb_2.npy` must hold.*shape \(0, 16\)"),
        (_array(np.ones((ROWS, WIDTH), np.int8)), r"img_emb_2.npy` must hold.*of int8"),
        (_pickle, r"img_emb_2.pkl` is refused.*class Arrays\(pickle.Unpickler\)"),
        (_text_nan, r"text_emb_0.npy`, row 4: the vector has NaN"),
        (_fewer, r"metadata_2.parquet` must have 60 rows, as `img_emb_2.npy` has, got 55"),
        (_no_part, r"metadata` must have a part for each of the 3 in `img_emb`, got 2"),
        (_other_number, r"metadata_10.parquet` must have the number of `img_emb/img_emb_2.npy`"),
        (_no_words, r"metadata_2.parquet`, row 7: caption 1 is empty"),
        (_twice, r"text_metadata_0.parquet`, row 3: `pond` in `a photo of a {}.` is in row 0 too"),
        (_said("class_name", "POND"), r"row 5: what differs in case alone must be one class"),
        (_said("label", 2**40), r"row 5: `label` must be below 2,147,483,648"),
        (
            _columns_of(class_name=["pond"] * ROWS, label=[3] * ROWS),
            r"metadata_2.parquet`, row 0: class `pond` must have one label, got None and 3",
        ),
        (
            _columns_of(class_name=["lake"] * ROWS, label=[3] * ROWS),
            r"row 0: all classes must have a label, or none, got 3 for `lake`",
        ),
        (
            _columns_of(class_name=["pond"] * ROWS, category=["river"] * ROWS),
            r"metadata_2.parquet`: `class_name` and `category` both name the class_name",
        ),
        (_train_alone, r"must have rows in `val`, got `train` alone: `--split hash` divides"),
        (
            _loose(save_tensors({"text_embeds": torch.ones(60, WIDTH)})),
            r"has no image vectors: .* that is called `image_embeds`",
        ),
        (_loose(_columnwise()), r"v.npz` is no valid `.npz` file: an array must lie row by row"),
        (_loose(b"garbage here and there"), r"v.safetensors` is no valid .*: header too large"),
        (_loose(CUT), r"v.safetensors` is no valid .* file not fully covered"),
    ],
)
def test_what_is_wrong_is_named_before_anything_is_written(
    folder: Path, spoil: Callable[[Path], None], said: str
) -> None:
    spoil(folder)
    with pytest.raises(CliptuneError, match=said):
        encode(folder)
    assert not (folder.parent / "features").exists()


def test_a_backbone_must_be_as_wide(folder: Path, tmp_path: Path) -> None:
    from tests.tiny import tiny_clip

    clip = str(tiny_clip(tmp_path / "clip", joint=16))
    store = encode(folder, backbone=clip)
    backbone = backbone_of(store)
    assert backbone.kind == "clip"
    train = open_features(store, "train", backbone)
    assert train.text_embeds().shape == (len(train.ids), 16)
    check_towers(store, [make_config("coop", {"task": "classification"})])
    wide = str(tiny_clip(tmp_path / "wide", joint=32))
    with pytest.raises(ConfigError, match="makes vectors of width 32"):
        encode(folder, backbone=wide)
    assert load_backbone(clip).fingerprint == backbone.fingerprint


def _npz(folder: Path, images: Any, texts: Any) -> None:
    np.savez(folder / "vectors.npz", image_embeds=images, text_embeds=texts)


def _compressed(folder: Path, images: Any, texts: Any) -> None:
    np.savez_compressed(folder / "vectors.npz", image_embeds=images, text_embeds=texts)


def _safetensors(folder: Path, images: Any, texts: Any) -> None:
    tensors = {"image_embeds": torch.from_numpy(images), "text_embeds": torch.from_numpy(texts)}
    save_file(tensors, folder / "vectors.safetensors")


def _columns(images: Any, texts: Any) -> pa.Table:
    return pa.table(
        {
            "image_embedding": pa.FixedSizeListArray.from_arrays(pa.array(images.ravel()), WIDTH),
            "text_embedding": pa.array(list(texts), pa.list_(pa.float16())),
            "id": [f"{n:03}" for n in range(len(images))],
            "caption": [f"caption {n}" for n in range(len(images))],
        }
    )


def _parquet(folder: Path, images: Any, texts: Any) -> None:
    pq.write_table(_columns(images, texts), folder / "rows.parquet")


def _huggingface(folder: Path, images: Any, texts: Any) -> None:
    """As `DatasetDict.save_to_disk` leaves it."""
    every = _columns(images, texts)
    for split, part in (("train", every.slice(0, 40)), ("validation", every.slice(40))):
        (folder / split).mkdir()
        path = folder / split / "data-00000-of-00001.arrow"
        with path.open("wb") as file, pa.ipc.new_stream(file, part.schema) as stream:
            stream.write_table(part, max_chunksize=7)


@pytest.mark.parametrize("write", [_npz, _compressed, _safetensors, _parquet, _huggingface])
def test_pairs_in_any_format(tmp_path: Path, write: Callable[..., None]) -> None:
    """A text for each image: what retrieval is trained and measured on."""
    folder = tmp_path / "given"
    folder.mkdir()
    images, texts = vectors(ROWS, 1), vectors(ROWS, 2)
    write(folder, images, texts)
    store = encode(folder)
    backbone = backbone_of(store)
    train = open_features(store, "train", backbone)
    rows = [int(id_) for id_ in train.ids]
    assert len(rows) > 10
    assert np.array_equal(train.image_embeds.numpy(), images[rows])
    assert np.array_equal(train.text_embeds().numpy(), texts[rows])
    said = {_npz: "text", _compressed: "text", _safetensors: "text"}.get(write, "caption")
    assert train.texts() == [f"{said} {row}" for row in rows]
    if write is _huggingface:
        assert rows == list(range(40))
    with pytest.raises(ConfigError, match=r"`soft_prompt` needs the text tower"):
        check_towers(store, [make_config("soft_prompt")])
    zero_shot = build(make_config("zero_shot"), backbone)
    found = predict(zero_shot, train)
    expected = F.normalize(torch.from_numpy(texts[rows]).float(), dim=-1)
    assert torch.allclose(found.text_embeds, expected, atol=1e-6)


@pytest.fixture
def named(tmp_path: Path) -> Path:
    """Vectors of images that have file names and nothing else."""
    folder = tmp_path / "named"
    folder.mkdir()
    save(folder / "img_emb/img_emb_0.npy", vectors(ROWS, 1))
    names = [{"image_path": f"{n}.jpg"} for n in range(ROWS)]
    table(folder / "metadata/metadata_0.parquet", names)
    return folder


def test_captions_come_from_a_source_of_their_own(named: Path, tmp_path: Path) -> None:
    lines = [
        "image,caption",
        *(f"{n}.jpg,a {word} {n}" for n in range(ROWS) for word in ("b", "c")),
    ]
    (tmp_path / "said.csv").write_text("\n".join(lines))
    store = encode(named, captions=tmp_path / "said.csv")
    train = open_features(store, "train", backbone_of(store))
    names_of = [id_.removesuffix(".jpg") for id_ in train.ids]
    assert train.texts_of_images() == [[f"a b {n}", f"a c {n}"] for n in names_of]
    with pytest.raises(DataError, match="no embeddings of these texts"):
        train.text_embeds()


def test_captions_that_were_mended_or_cut_are_counted_and_told(
    named: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.tiny import tiny_clip

    clip = str(tiny_clip(tmp_path / "clip", joint=WIDTH))
    said = ["a dog&#39;s ball", "\u201ca dog\u201d", "a dog " * 90, *["a dog"] * (ROWS - 3)]
    lines = ["image,caption", *(f"{n}.jpg,{text}" for n, text in enumerate(said))]
    (tmp_path / "said.csv").write_text("\n".join(lines))
    stores = []
    for cleans, told in ((True, "2 captions were mended"), (False, "1 captions were cut to 77")):
        flags = {"backbone": clip, "captions": tmp_path / "said.csv", "clean_text": cleans}
        stores.append(encode(named, **flags))
        out = capsys.readouterr().out
        assert told in out
        assert ("mended" in out) is cleans
    assert stores[0] != stores[1]
    one, other = (open_features(store, "train", backbone_of(store)) for store in stores)
    assert len(one.tokens.ids) < len(other.tokens.ids)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'7.jpg,""', r"said.csv`, `7.jpg`: caption 1 is empty"),
        (b"7.jpg,caf\xe9", r"said.csv`, `7.jpg`: caption 1 is not UTF-8"),
        (b"7.jpg,a pond,8", r"said.csv`, `row 62`: 3 cells where the header has 2"),
    ],
)
def test_a_bad_caption_of_a_source_is_named(
    named: Path, tmp_path: Path, line: bytes, said: str
) -> None:
    lines = [b"image,caption", *(f"{n}.jpg,a pond {n}".encode() for n in range(ROWS)), line]
    (tmp_path / "said.csv").write_bytes(b"\n".join(lines))
    with pytest.raises(DataError, match=said):
        encode(named, captions=tmp_path / "said.csv")


def test_a_folder_read_as_classes_is_no_source_of_captions(named: Path, tmp_path: Path) -> None:
    """Karpathy's JSON beside the folder of its images."""
    (tmp_path / "flickr/images").mkdir(parents=True)
    for n in range(ROWS):
        (tmp_path / f"flickr/images/{n}.jpg").write_bytes(b"")
    write_json(
        tmp_path / "flickr/dataset.json",
        {
            "images": [
                {"filename": f"{n}.jpg", "split": "train", "sentences": [{"raw": f"a  pond {n}"}]}
                for n in range(ROWS)
            ]
        },
    )
    with pytest.raises(DataError, match=r"has folders \(images\) and `dataset\.json`.*karpathy"):
        encode(named, captions=tmp_path / "flickr")
    store = encode(named, captions=tmp_path / "flickr/dataset.json")
    assert "a pond 0" in open_features(store, "train", backbone_of(store)).texts()


def test_captions_of_another_image_of_that_name_are_not_taken(tmp_path: Path) -> None:
    save(tmp_path / "given/img_emb/img_emb_0.npy", vectors(2, 1))
    names = [{"image_path": f"a/{n}.jpg"} for n in range(2)]
    table(tmp_path / "given/metadata/metadata_0.parquet", names)
    (tmp_path / "said.csv").write_text("image,caption\na/0.jpg,b\na/1.jpg,c\nd/1.jpg,e\n")
    with pytest.raises(DataError, match=r"one image called `1.jpg`, got `a/1.jpg` and `d/1.jpg`"):
        encode(tmp_path / "given", captions=tmp_path / "said.csv")


def test_an_arena_of_a_store_leaves_each_draw_its_own_test(folder: Path, tmp_path: Path) -> None:
    """Its stages one by one, without the workers between."""
    store = encode(folder, split="draw")
    args = arena.Args((f"given={store}",), shots=(8,), seed=(1, 2), protocol=("all",), trials=1)
    plan = dataclasses.replace(plan_of(args), adapters=("zero_shot", "tip_adapter"), epochs=1)
    assert "tip_adapter" in plan_of(args).adapters
    assert not {"coop", "maple"} & set(plan_of(args).adapters)
    out = tmp_path / "arena"
    arena._draw(args, plan, out)
    write_plan(out, plan)
    assert arena._linked(str(store), store_of(out, "given"))
    arena._check_words(plan, out)
    for cell in plan.cells():
        search = CellSearch(Arena(plan, out, 1), cell)
        while search.advance(lambda: False):
            pass
        assert search.close()["state"] == "done"
    cells = measure_arena(out, Seal("a test"))["cells"]
    assert [len(cell["correct"]["all"]) for cell in cells] == [3 * (ROWS - 8 - 4)] * 4
    with pytest.raises(CliptuneError, match="must be one store"):
        plan_of(dataclasses.replace(args, data=(f"a={store}", f"b={store}")))
    with pytest.raises(ConfigError, match="`coop` needs the text tower"):
        plan_of(dataclasses.replace(args, adapter=("coop",)))


def test_rows_of_a_file_are_classified(folder: Path, tmp_path: Path) -> None:
    backbone = backbone_of(encode(folder))
    adapter = build(make_config("zero_shot", {"task": "classification"}), backbone)
    classes = Classes(NAMES, TEMPLATES[0])
    np.save(tmp_path / "new.npy", vectors(6, 9)[:3])  # the texts themselves
    np.save(tmp_path / "wide.npy", np.ones((2, 3), np.float32))
    faults = Faults()
    model = Model("zero-shot", adapter, "", "", classes)
    rows = classify(model, [tmp_path / "new.npy", tmp_path / "wide.npy"], classes, 1, faults)
    assert [row["path"] for row in rows] == [f"{tmp_path / 'new.npy'}:{n}" for n in range(3)]
    assert [row["classes"][0]["name"] for row in rows] == list(NAMES)
    assert faults.reasons == {tmp_path / "wide.npy": "must have vectors of width 16, got 3."}
