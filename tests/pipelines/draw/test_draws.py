"""Draws: few-shot tasks out of labelled shards, as files that say when they were altered."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import tomllib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.draw.__main__ import Args, run
from pipelines.draw.class_names import FOLDER, Words, clean, read_words, shipped
from pipelines.draw.index_json import index_draw
from pipelines.draw.labelled import read_labelled
from pipelines.draw.make import Task, make_draw, part_of
from pipelines.shards import __main__ as shards_stage
from tests import ROOT
from trainables.data.shards import SCHEMA, ShardSet
from trainables.errors import ConfigError, DataError
from trainables.features.few_shot import PARTS, Draw, Member, Part, read_draw, write_draw
from trainables.files import sha256_bytes, sha256_file, sha256_json, write_json

DATA = ROOT.parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="no ../shared/data beside the project")
NAMES = ("Barn", "oak_tree", "RiverBank", "cat", "old town")
PLAIN = Words("none", "a photo of a {}.", {})
Row = dict[str, Any]


def row(label: int, number: int, split: str = "train", /, **changed: Any) -> Row:
    name = f"{NAMES[label]}/{split}_{number}.jpg"
    values = {"id": name, "label": label, "class_name": NAMES[label], "split": split}
    return {**values, "image": name.encode(), **changed}


def rows_of(classes: int = 5, train: int = 6, val: int = 5, test: int = 2) -> list[Row]:
    counts = {"train": train, "val": val, "test": test}
    return [
        row(label, n, split)
        for split, count in counts.items()
        for label in range(classes)
        for n in range(count)
    ]


def shards_of(folder: Path, rows: Sequence[Row], rows_per_shard: int = 1000) -> ShardSet:
    """Shards of these rows, whatever they are; the shards stage would refuse some."""
    folder.mkdir(parents=True)
    shards, splits = [], {}
    for split in ("train", "val", "test"):
        here = [
            {"width": 8, "height": 8, "captions": [], "sha256": sha256_bytes(r["image"]), **r}
            for r in rows
            if r["split"] == split
        ]
        if here:
            splits[split] = {"images": len(here), "captions": 0}
        for start in range(0, len(here), rows_per_shard):
            path = folder / f"{split}-{start:05}.parquet"
            pq.write_table(pa.Table.from_pylist(here[start : start + rows_per_shard], SCHEMA), path)
            entry = {"file": path.name, "split": split, "rows": len(here[start:][:rows_per_shard])}
            shards.append(entry | {"sha256": sha256_file(path)})
    manifest = {"format": "cliptune-shards-1", "splits": splits, "shards": shards, "classes": {}}
    write_json(folder / "manifest.json", manifest)
    return ShardSet.open(folder)


def draw_of(shards: ShardSet, shots: int = 2, **changed: Any) -> Draw:
    return make_draw(read_labelled(shards), task_of(shots, **changed))


def task_of(shots: int = 2, **changed: Any) -> Task:
    wanted: dict[str, Any] = {"seed": 1, "part": "all", "words": PLAIN, **changed}
    return Task("things", shots, **wanted)


def ids(members: Sequence[Member], label: int | None = None) -> set[str]:
    return {m.id for m in members if label is None or m.label == label}


# --- which images -------------------------------------------------------------------------------


@pytest.mark.parametrize(("shots", "train", "val"), [(1, 1, 1), (2, 2, 2), (6, 6, 4), (0, 6, 5)])
def test_shots_a_class_of_train_and_at_most_four_of_val(
    tmp_path: Path, shots: int, train: int, val: int
) -> None:
    draw = draw_of(shards_of(tmp_path / "s", rows_of()), shots)
    assert Counter(m.label for m in draw.train) == dict.fromkeys(range(5), train)
    assert Counter(m.label for m in draw.val) == dict.fromkeys(range(5), val)
    for member in (*draw.train, *draw.val):
        assert member.id.startswith(NAMES[member.label] + "/")
        assert member.sha256 == sha256_bytes(member.id.encode())
    assert all("/train_" in m.id for m in draw.train)
    assert all("/val_" in m.id for m in draw.val)
    assert draw.names == ("Barn", "oak tree", "River Bank", "cat", "old town")
    assert (draw.labels, draw.shots, draw.seed, draw.dataset) == (
        tuple(range(5)),
        shots,
        1,
        "things",
    )


def test_the_images_are_those_of_lowest_rank_by_a_formula_of_their_own(tmp_path: Path) -> None:
    draw = draw_of(shards_of(tmp_path / "s", rows_of()), 3, seed=7)
    for label, name in enumerate(NAMES):
        every = [f"{name}/train_{n}.jpg" for n in range(6)]
        every.sort(key=lambda one: hashlib.sha256(b"7\n" + one.encode()).hexdigest())
        assert ids(draw.train, label) == set(every[:3])


def test_order_and_shards_do_not_matter_and_seeds_do(tmp_path: Path) -> None:
    rows = rows_of(train=12)
    draw = draw_of(shards_of(tmp_path / "a", rows), 4)
    random.Random(3).shuffle(rows)
    other = draw_of(shards_of(tmp_path / "b", rows, rows_per_shard=7), 4)
    assert (other.train, other.val, other.labels) == (draw.train, draw.val, draw.labels)
    reseeded = draw_of(shards_of(tmp_path / "c", rows), 4, seed=2)
    assert all(ids(reseeded.train, c) != ids(draw.train, c) for c in range(5))


def test_a_class_is_drawn_alike_whatever_the_others_are(tmp_path: Path) -> None:
    whole = draw_of(shards_of(tmp_path / "a", rows_of()), 3)
    two = draw_of(shards_of(tmp_path / "b", [r for r in rows_of() if r["label"] in (1, 4)]), 3)
    for place, label in enumerate((1, 4)):
        assert ids(two.train, place) == ids(whole.train, label)
        assert ids(two.val, place) == ids(whole.val, label)
    assert two.labels == (1, 4)


def test_fewer_shots_are_among_more(tmp_path: Path) -> None:
    shards = shards_of(tmp_path / "s", rows_of())
    draws = [draw_of(shards, shots) for shots in (1, 2, 4)]
    assert ids(draws[0].train) < ids(draws[1].train) < ids(draws[2].train)


def test_every_image_is_drawn_about_as_often(tmp_path: Path) -> None:
    shards = shards_of(tmp_path / "s", rows_of(classes=2, train=8, val=1))
    seeds = 120
    seen = Counter(
        m.id for seed in range(seeds) for m in draw_of(shards, 2, seed=seed, fewer=True).train
    )
    expected = seeds * 2 / 8
    for label in range(2):
        counts = [seen[f"{NAMES[label]}/train_{n}.jpg"] for n in range(8)]
        # Pearson's statistic with 7 degrees of freedom exceeds 24.3 once in a thousand times.
        assert sum((count - expected) ** 2 / expected for count in counts) < 24.3


def test_an_equal_picture_is_drawn_once_and_never_on_both_sides(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = rows_of(classes=3, train=5, val=4)
    rows.append(row(0, 5, image=rows[0]["image"]))  # twice in a class
    rows.append(row(1, 5, image=rows[2]["image"]))  # two labels: 0 and 1
    rows.append(row(2, 5, "val", image=row(2, 0)["image"]))  # in train too
    shards = shards_of(tmp_path / "s", rows)
    run(Args(shards.folder, shots=0, out=tmp_path / "draw.json"))
    said, draw = capsys.readouterr().out, read_draw(tmp_path / "draw.json")
    for split, left in (("train", "3 of 17"), ("val", "1 of 13")):
        assert f"note: {left} `{split}` images are left out" in said
    assert Counter(m.label for m in draw.train) == {0: 4, 1: 5, 2: 5}
    assert {"Barn/train_0.jpg"} == ids(draw.train) & {"Barn/train_0.jpg", "Barn/train_5.jpg"}
    assert ids(draw.train).isdisjoint({"Barn/train_2.jpg", "oak_tree/train_5.jpg"})
    assert Counter(m.label for m in draw.val) == {0: 4, 1: 4, 2: 4}
    digests = [m.sha256 for m in (*draw.train, *draw.val)]
    assert len(digests) == len(set(digests))


def test_base_and_new_are_the_halves_of_all(tmp_path: Path) -> None:
    shards = shards_of(tmp_path / "s", rows_of())
    whole, base, new = (draw_of(shards, 3, part=part) for part in PARTS)
    assert (base.labels, new.labels) == ((0, 1, 2), (3, 4))
    assert base.names + new.names == whole.names
    assert {m.label for m in new.train} == {m.label for m in new.val} == {0, 1}
    for half in (base, new):
        for place, label in enumerate(half.labels):
            assert ids(half.train, place) == ids(whole.train, label)
            assert ids(half.val, place) == ids(whole.val, label)


@pytest.mark.parametrize(("part", "expected"), [("base", [2, 3, 5]), ("new", [7, 9])])
def test_the_middle_class_of_an_odd_number_is_base(part: Part, expected: list[int]) -> None:
    assert part_of([9, 3, 5, 2, 7], part) == expected


def test_no_image_is_read_and_test_is_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = shards_of(tmp_path / "s", rows_of())
    read, rows = [], ShardSet.rows
    monkeypatch.setattr(
        ShardSet, "rows", lambda self, *asked: (read.append(asked), rows(self, *asked))[1]
    )
    for path in (tmp_path / "s").glob("test-*"):
        path.unlink()
    draw_of(shards)
    columns = ("id", "sha256", "label", "class_name", "classes")
    assert read == [("train", columns), ("val", columns)]


# --- what is refused ----------------------------------------------------------------------------


def refused(tmp_path: Path, rows: Sequence[Row], **asked: Any) -> str:
    with pytest.raises(DataError) as caught:
        draw_of(shards_of(tmp_path / "s", rows), **asked)
    return str(caught.value)


def test_too_few_images_and_fewer(tmp_path: Path) -> None:
    rows = [r for r in rows_of(train=4) if r["id"] != "cat/train_0.jpg"]
    shards = shards_of(tmp_path / "s", rows)
    with pytest.raises(DataError) as caught:
        draw_of(shards, 4)
    assert str(caught.value) == (
        "class `cat` (label 3) has 3 of the 4 `train` images that 4 shots need; "
        "`--fewer` takes what there is."
    )
    draw = draw_of(shards, 4, fewer=True)
    assert Counter(m.label for m in draw.train) == {0: 4, 1: 4, 2: 4, 3: 3, 4: 4}
    assert len(draw_of(shards, 4, part="base").train) == 12  # the short class is not in it


def test_too_few_val_images(tmp_path: Path) -> None:
    said = refused(tmp_path, rows_of(val=3), shots=16)
    assert "has 6 of the 16 `train` images" in said
    assert "has 3 of the 4 `val` images" in refused(tmp_path / "b", rows_of(val=3), shots=5)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            [*rows_of(), row(0, 9, label=None, class_name=None)],
            "row `Barn/train_9.jpg` (label None, class None) has no label",
        ),
        (
            [*rows_of(), row(2, 9, "val", class_name=None)],
            "row `RiverBank/val_9.jpg` (label 2, class None) has no class name",
        ),
        (
            [*rows_of(), row(1, 9, class_name="elm")],
            "label 1 is class `elm` in row `oak_tree/train_9.jpg` and "
            "`oak_tree` in row `oak_tree/train_0.jpg`.",
        ),
        (
            [*rows_of(), row(1, 9, "val", label=8)],
            "class `oak_tree` has label 8 in row `oak_tree/val_9.jpg` and "
            "1 in row `oak_tree/train_0.jpg`.",
        ),
        (
            [*rows_of(4), *(row(4, n) for n in range(6))],
            "class `old town` (label 4, as in row `old town/train_0.jpg`) has no image in `val`.",
        ),
        (
            [*rows_of(3), row(3, 0, "val"), row(4, 0, "val")],
            "class `cat` (label 3, as in row `cat/val_0.jpg`) has no image in `train`; "
            "1 other classes lack it too.",
        ),
        (rows_of(1), "has a single class, `Barn` (label 0): there is no task."),
        (rows_of(val=0), "has no `val` images: a draw takes some of each."),
    ],
)
def test_rows_that_make_no_task(tmp_path: Path, rows: list[Row], said: str) -> None:
    assert said in refused(tmp_path, rows)


def test_a_half_of_one_class_is_no_task(tmp_path: Path) -> None:
    said = refused(tmp_path, rows_of(3), part="new")
    assert said == "part `new` of 3 classes is 1 class: there is no task."


def test_a_class_whose_only_val_image_is_in_train(tmp_path: Path) -> None:
    rows = [*rows_of(3, val=1)]
    rows[-7] = rows[-7] | {"image": row(2, 0)["image"]}
    assert rows[-7]["id"] == "RiverBank/val_0.jpg"
    said = refused(tmp_path, rows, shots=1)
    assert said == "class `RiverBank` (label 2) has no usable image in `val`."


def test_shots_and_part_are_checked_before_any_file(tmp_path: Path) -> None:
    shards_of(tmp_path / "s", rows_of())
    for path in (tmp_path / "s").glob("*.parquet"):
        path.unlink()
    with pytest.raises(ConfigError, match=r"`--shots` must be at least 0, got -1\."):
        run(Args(tmp_path / "s", -1))
    with pytest.raises(ConfigError, match="unknown part `bse`"):
        run(Args(tmp_path / "s", part="bse"))  # type: ignore[arg-type]


# --- words --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("american_bulldog", "american bulldog"),
        ("BenchPress", "Bench Press"),
        ("Annual Crop Land", "Annual Crop Land"),
        ("McLaren MP4-12C Coupe", "McLaren MP4-12C Coupe"),
        ("DHC-8-100", "DHC-8-100"),
        ("F-16A/B", "F-16A/B"),
        ("Apply_Eye_Makeup", "Apply Eye Makeup"),
        ("_old__town_", "old town"),
        ("colt's foot", "colt's foot"),
    ],
)
def test_clean(name: str, words: str) -> None:
    assert clean(name) == words


def test_shipped_lists() -> None:
    assert set(shipped()) >= {
        *("caltech101", "default", "dtd", "eurosat", "fgvc_aircraft", "food101", "imagenet"),
        *("oxford_flowers", "oxford_pets", "stanford_cars", "sun397", "ucf101"),
    }
    lists = {name: read_words(name) for name in shipped()}
    assert lists["default"].template == "a photo of a {}."
    assert lists["dtd"].template == "{} texture."
    assert [len(lists[name].names) for name in ("eurosat", "oxford_flowers")] == [10, 102]
    for words in lists.values():
        folded = [name.casefold() for name in words.names.values()]
        assert len(set(folded)) == len(folded)


def test_shipped_lists_are_installed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    globs = project["tool"]["setuptools"]["package-data"]["pipelines"]
    installed = {path for glob in globs for path in (ROOT / "pipelines").glob(glob)}
    assert set(FOLDER.iterdir()) <= installed


def test_a_list_fits_folder_names_and_words_alike() -> None:
    words = read_words("eurosat")
    names = ("annual crop land", "sea or lake")
    assert words.of(["AnnualCrop", "SeaLake"]) == names
    assert words.of(["Annual Crop Land", "Sea or Lake"]) == names
    assert words.of(["AnnualCrop", "IceSheet"]) == ("annual crop land", "Ice Sheet")


def own(tmp_path: Path, value: Any) -> Words:
    path = tmp_path / "words.json"
    path.write_text(json.dumps(value))
    return read_words(str(path))


def test_a_users_own_words(tmp_path: Path) -> None:
    words = own(tmp_path, {"names": {"oak_tree": " a   mighty oak"}})
    draw = draw_of(shards_of(tmp_path / "s", rows_of()), words=words)
    assert draw.names == ("Barn", "a mighty oak", "River Bank", "cat", "old town")
    assert draw.template == "a photo of a {}."


def test_texts_of_a_class_stand_beside_its_name(tmp_path: Path) -> None:
    texts = {"river bank": ["Water  beside grass.", "A bank of sand."], "cat": ["It purrs."]}
    words = own(tmp_path, {"texts": texts})
    draw = draw_of(shards_of(tmp_path / "s", rows_of()), words=words)
    assert draw.names == ("Barn", "oak tree", "River Bank", "cat", "old town")
    assert draw.texts == ((), (), ("Water beside grass.", "A bank of sand."), ("It purrs.",), ())
    write_draw(tmp_path / "draw.json", draw)
    assert read_draw(tmp_path / "draw.json") == draw
    assert draw.classes.texts == draw.texts
    assert not draw.classes.ensemble
    many = own(tmp_path, {"texts": texts, "ensemble": True})
    other = draw_of(shards_of(tmp_path / "e", rows_of()), words=many)
    assert (other.ensemble, other.classes.ensemble) == (True, True)
    write_draw(tmp_path / "many.json", other)
    assert read_draw(tmp_path / "many.json") == other
    half = draw_of(shards_of(tmp_path / "t", rows_of()), words=words, part="base")
    assert half.texts == draw.texts[:3]
    fewer = own(tmp_path, {"texts": {"rivrbank": ["Water."]}})
    with pytest.raises(DataError, match="`rivrbank` fits no class; the nearest is `RiverBank`"):
        fewer.of(NAMES)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"texts": ["a"]}, "`texts` must map classes to lists, got ['a']."),
        ({"texts": {"cat": "a"}}, "the texts for `cat` must be a list of text, got 'a'."),
        ({"texts": {"cat": []}}, "the texts for `cat` must be a list of text, got []."),
        ({"ensemble": 1}, "`ensemble` must be true beside `texts`, or false, got 1 without any."),
        ({"ensemble": True}, "or false, got True without any."),
        ({"templates": "{}"}, "unknown key `templates`. Did you mean `template`?"),
        ({"template": "a photo"}, "`template` must hold `{}` once"),
        ({"template": "{} and {}"}, "`template` must hold `{}` once"),
        ({"template": "{} of {size}"}, "no other brace, got '{} of {size}'."),
        ({"template": 3}, "`template` must be text, got 3."),
        ({"names": ["a"]}, "`names` must map classes to words"),
        ({"names": {"cat": " "}}, "the words for `cat` must be text, got ' '."),
        ([], "must hold"),
    ],
)
def test_words_that_are_none(tmp_path: Path, value: Any, said: str) -> None:
    with pytest.raises(DataError) as caught:
        own(tmp_path, value)
    assert said in str(caught.value)
    assert "words.json`" in str(caught.value)


def test_words_that_fit_nothing(tmp_path: Path) -> None:
    words = own(tmp_path, {"names": {"cat": "cat", "rivrbank": "a river's bank"}})
    with pytest.raises(DataError, match="`rivrbank` fits no class; the nearest is `RiverBank`"):
        words.of(NAMES)
    with pytest.raises(DataError, match="none of its 10 names, such as `AnnualCrop`, is a class"):
        read_words("eurosat").of(NAMES)
    with pytest.raises(ConfigError, match=r"unknown list `eurosta`\. Did you mean `eurosat`"):
        read_words("eurosta")
    with pytest.raises(DataError, match="class `n01440764` is a WordNet id"):
        read_words("imagenet").of(["n01440764", "n01443537"])


def test_two_classes_of_one_name(tmp_path: Path) -> None:
    words = own(tmp_path, {"names": {"cat": "OLD TOWN"}})
    with pytest.raises(DataError) as caught:
        draw_of(shards_of(tmp_path / "s", rows_of()), words=words, part="base")
    assert str(caught.value).startswith(
        "classes `cat` (label 3) and `old town` (label 4) are both called `OLD TOWN`; tell them"
    )


# --- the file -----------------------------------------------------------------------------------

SMALL = Draw(
    **{"dataset": "things", "shards_sha256": "ab", "shots": 1, "seed": 3, "part": "all"},
    **{"names": ("caf\u00e9", "barn"), "labels": (4, 7), "template": "a {}."},
    train=(Member("a", "00", 0), Member("b", "01", 1)),
    val=(Member("c", "02", 0), Member("d", "03", 1)),
)


def test_a_draw_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_draw(tmp_path / "new" / "draw.json", SMALL)
    assert read_draw(tmp_path / "new" / "draw.json") == SMALL
    value = json.loads((tmp_path / "new" / "draw.json").read_text())
    assert not {"texts", "ensemble"} & value.keys()  # the key is that of before there were any
    assert value.pop("sha256") == sha256_json(value) == SMALL.key
    assert value["train"][1] == {"id": "b", "sha256": "01", "label": 1}


def test_the_key_is_of_everything() -> None:
    others: list[Draw] = [
        dataclasses.replace(SMALL, **{name: value})
        for name, value in {
            **{"dataset": "x", "shards_sha256": "ac", "shots": 2, "seed": 4, "part": "base"},
            **{"names": ("inn", "barn"), "labels": (4, 8), "template": "{}"},
            "train": (Member("e", "00", 0), Member("b", "01", 1)),
            "val": (Member("c", "05", 0), Member("d", "03", 1)),
            "texts": ((), ("it",)),
            "ensemble": True,
            "missing": ("x.jpg",),
        }.items()
    ]
    assert len(others) == len(dataclasses.fields(Draw))
    assert len({SMALL.key, *(draw.key for draw in others)}) == 14


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 4}, "was altered since it was written"),
        ({"train": []}, "was altered since it was written"),
        ({"sha256": None}, "was altered since it was written"),
        ({"format": "cliptune-draw-2"}, "was altered since it was written."),
    ],
)
def test_an_altered_file(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    path = tmp_path / "draw.json"
    write_draw(path, SMALL)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(DataError) as caught:
        read_draw(path)
    assert str(caught.value).startswith(f"`{path}` {said}")


@pytest.mark.parametrize("changes", [{"part": "old"}, {"more": 1}, {"train": [{"id": "a"}]}])
def test_a_forged_file(tmp_path: Path, changes: dict[str, Any]) -> None:
    value = {"format": "cliptune-draw-1", **dataclasses.asdict(SMALL), **changes}
    path = tmp_path / "draw.json"
    path.write_text(json.dumps(value | {"sha256": sha256_json(json.loads(json.dumps(value)))}))
    with pytest.raises(DataError, match="is not a draw: "):
        read_draw(path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"texts": ((),)}, "`texts` must be of 2 classes, got 1."),
        ({"part": "bas"}, "unknown part `bas`. Did you mean `base`?"),
        ({"shots": -1}, "`shots` must be at least 0 (0: all images), got -1."),
        ({"template": "a photo."}, "`template` must hold `{}` once"),
        ({"names": ("Barn", "barn")}, "labels 4 and 7 are both `barn`."),
        ({"names": ("barn", " ")}, "the class with label 7 has an empty name."),
        ({"names": ("barn",)}, "a draw needs at least 2 classes, got 1: barn."),
        ({"labels": (4, 4)}, "`labels` must be one for each of 2 names, got (4, 4)."),
        ({"val": SMALL.val[:1]}, "class `barn` has no image in `val`."),
        ({"val": (*SMALL.val, Member("e", "00", 0))}, "`a` and `e` are the same image."),
        ({"train": (*SMALL.train, SMALL.train[1])}, "image `b` is in the draw twice."),
        ({"val": (*SMALL.val, Member("e", "05", 2))}, "image `e` has label 2, outside 0 to 1."),
    ],
)
def test_a_draw_that_is_none(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError) as caught:
        dataclasses.replace(SMALL, **changes)
    assert said in str(caught.value)


# --- other people's draws -----------------------------------------------------------------------


def index_of(path: Path, rows: Sequence[Row]) -> Path:
    """These rows as cross-modal adaptation lists them, on another machine."""
    listed = {
        split: {
            "data": [
                {"impath": f"./data/x/images/{r['id']}", "label": r["label"], "classname": "any"}
                for r in rows
                if r["split"] == split
            ],
            "indices": [],
        }
        for split in ("train", "val")
    }
    path.write_text(json.dumps(listed))
    return path


def chosen_rows() -> list[Row]:
    return [row(c, n, s) for s in ("val", "train") for c in range(5) for n in (4, 1)]


def test_an_index_is_the_draw_it_lists(tmp_path: Path) -> None:
    shards = shards_of(tmp_path / "s", rows_of())
    index = index_of(tmp_path / "index.json", chosen_rows())
    data = read_labelled(shards)
    draw = index_draw(index, data, task_of())
    assert ids((*draw.train, *draw.val)) == {r["id"] for r in chosen_rows()}
    assert all(m.id.startswith(NAMES[m.label]) for m in draw.train)
    new = index_draw(index, data, task_of(part="new"))
    assert ids(new.train, 0) == {"cat/train_1.jpg", "cat/train_4.jpg"}
    drawn = draw_of(shards, 3)
    listed = [r for r in rows_of() if r["id"] in ids((*drawn.train, *drawn.val))]
    again = index_of(tmp_path / "again.json", listed)
    assert index_draw(again, data, task_of(3)) == drawn


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            [*chosen_rows(), row(2, 77)],
            "row 11 of `train`: `./data/x/images/RiverBank/train_77.jpg` is no `train` image",
        ),
        (
            [row(0, 0, id="Barn/test_0.jpg")],
            "row 1 of `train`: `./data/x/images/Barn/test_0.jpg` is no `train` image",
        ),
        (
            [row(0, 0), row(1, 0, label=3)],
            "row 2 of `train`: `./data/x/images/oak_tree/train_0.jpg` has label 3, "
            "and 1 (`oak_tree`) in the shards.",
        ),
        ([row(0, 0), row(0, 0)], "row 2 of `train`: `./data/x/images/Barn/train_0.jpg` was listed"),
        ([row(0, 0, label="0")], "row 1 of `train` must have `impath` and `label`"),
        (chosen_rows()[:-1], "class `old town` (label 4) has 1 of the 2 `train` images"),
        ([*chosen_rows(), row(4, 0)], "has 3 `train` images of class `old town` (label 4), more"),
        (chosen_rows()[2:], "class `Barn` (label 0) has no usable image in `val`."),
    ],
)
def test_an_index_that_does_not_fit(tmp_path: Path, rows: list[Row], said: str) -> None:
    data = read_labelled(shards_of(tmp_path / "s", rows_of()))
    index = index_of(tmp_path / "index.json", rows)
    with pytest.raises(DataError) as caught:
        index_draw(index, data, task_of())
    assert said in str(caught.value)


def test_an_index_may_hold_any_number_of_val_and_fewer_of_train_when_told(tmp_path: Path) -> None:
    data = read_labelled(shards_of(tmp_path / "s", rows_of()))
    index = index_of(tmp_path / "index.json", chosen_rows()[1:-1])
    draw = index_draw(index, data, task_of(fewer=True))
    assert (len(draw.train), len(draw.val)) == (9, 9)
    assert index_draw(index, data, task_of(0)).train == draw.train


def test_images_of_an_index_that_the_shards_lack_are_left_out_when_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where a picture stands in train and in test, and `shards --on-leak drop` kept it there."""
    lost = [row(0, 4), row(2, 1), row(4, 1, "val")]
    names = [f"./data/x/images/{one['id']}" for one in lost]
    gone = {one["id"] for one in lost}
    shards = shards_of(tmp_path / "s", [one for one in rows_of() if one["id"] not in gone])
    index, out = index_of(tmp_path / "index.json", chosen_rows()), tmp_path / "draw.json"
    with pytest.raises(DataError) as caught:
        run(Args(tmp_path / "s", 2, index=index, out=out))
    said = str(caught.value)
    assert f"row 1 of `train`: `{names[0]}` is no `train` image of the shards, nor are 1 m" in said
    assert "`--missing drop`" in said
    assert not out.exists()
    run(Args(tmp_path / "s", 2, index=index, out=out, missing="drop"))
    draw = read_draw(out)
    assert ids((*draw.train, *draw.val)) == {one["id"] for one in chosen_rows()} - gone
    assert draw.missing == tuple(names)
    assert json.loads(out.read_text())["missing"] == names
    assert "left out: 3 images of" in capsys.readouterr().out
    new = index_draw(index, read_labelled(shards), task_of(part="new"), drop_missing=True)
    assert new.missing == (names[2],)
    fewer = index_of(tmp_path / "fewer.json", chosen_rows()[:-1])
    with pytest.raises(DataError, match="has 1 of the 2 `train` images"):  # 2 are not listed
        index_draw(fewer, read_labelled(shards), task_of(), drop_missing=True)
    whole = read_labelled(shards_of(tmp_path / "whole", rows_of()))
    drawn = index_draw(index, whole, task_of())
    assert index_draw(index, whole, task_of(), drop_missing=True).key == drawn.key
    others = [one | {"id": f"elsewhere/{one['id']}.png"} for one in chosen_rows()]
    foreign = index_of(tmp_path / "foreign.json", others)
    with pytest.raises(DataError, match="has no usable image in `train`"):
        index_draw(foreign, whole, task_of(), drop_missing=True)
    with pytest.raises(DataError, match="`--missing drop` is for the images of an `--index`"):
        Args(tmp_path / "s", missing="drop")


@pytest.mark.parametrize("value", [[], {"train": []}, {"train": {"data": {}}}])
def test_an_index_of_another_kind(tmp_path: Path, value: Any) -> None:
    (tmp_path / "index.json").write_text(json.dumps(value))
    data = read_labelled(shards_of(tmp_path / "s", rows_of()))
    with pytest.raises(DataError, match=r"has no list of images at `train\.data`"):
        index_draw(tmp_path / "index.json", data, task_of())


# --- the stage ----------------------------------------------------------------------------------


def test_the_stage_writes_once_and_protects_what_it_wrote(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards_of(tmp_path / "farm", rows_of())
    out = tmp_path / "draws" / "farm.json"
    args = Args(tmp_path / "farm", shots=3, seed=5, out=out)
    run(args)
    said = capsys.readouterr().out
    assert "5 classes, such as: a photo of a Barn.\n" in said
    assert f"wrote {out}\nnext: cliptune tune --features " in said
    assert f"--draw {out} --adapter coop" in said
    draw, before = read_draw(out), out.read_bytes()
    assert (draw.dataset, draw.shots, draw.seed, len(draw.train)) == ("farm", 3, 5, 15)
    run(args)
    assert "is up to date: nothing to do." in capsys.readouterr().out
    with pytest.raises(DataError, match="holds another draw \\(seed, train, val differ\\)"):
        run(dataclasses.replace(args, seed=6))
    assert out.read_bytes() == before
    out.write_bytes(before.replace(b'"seed": 5', b'"seed": 6'))
    with pytest.raises(DataError, match="was altered since it was written"):
        run(args)


def test_the_stage_names_its_file_after_the_draw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shards_of(tmp_path / "s", rows_of())
    run(Args(Path("s"), shots=2, dataset="farm"))
    run(Args(Path("s"), shots=2, dataset="farm", part="base"))
    assert read_draw(Path("draws/farm-2-1.json")).part == "all"
    assert read_draw(Path("draws/farm-2-1-base.json")).part == "base"


def test_the_stage_takes_an_index_and_words(tmp_path: Path) -> None:
    shards_of(tmp_path / "s", rows_of())
    (tmp_path / "w.json").write_text(json.dumps({"template": "my {}", "names": {"cat": "tabby"}}))
    index = index_of(tmp_path / "index.json", chosen_rows())
    out = tmp_path / "draw.json"
    run(Args(tmp_path / "s", 2, words=str(tmp_path / "w.json"), index=index, out=out))
    draw = read_draw(out)
    assert ids(draw.train) == {r["id"] for r in chosen_rows() if r["split"] == "train"}
    assert (draw.template, draw.names[3]) == ("my {}", "tabby")


def test_shards_of_captions_alone(tmp_path: Path) -> None:
    bare = {"label": None, "class_name": None, "captions": ["a cat"]}
    shards_of(
        tmp_path / "s", [row(0, n, split, **bare) for n in (0, 1) for split in ("train", "val")]
    )
    with pytest.raises(DataError, match=r"row `Barn/train_0\.jpg` .* has no label"):
        run(Args(tmp_path / "s", out=tmp_path / "draw.json"))
    assert not (tmp_path / "draw.json").exists()


# --- real data ----------------------------------------------------------------------------------

# The images of seed 1's 16-shot draw of EuroSAT that cross-modal adaptation published.
TRAIN = {
    "AnnualCrop": "2365 93 2552 2426 2106 875 1589 2815 809 535 180 1132 949 1647 1770 1611",
    "Forest": "2409 1611 2119 429 1003 2107 924 2530 2127 526 791 2732 1849 1649 275 1332",
    "HerbaceousVegetation": "1075 1217 2611 80 855 1206 2797 396 1041 1801 428 1508 2727 2165 "
    "2599 1326",
    "Highway": "2157 1101 738 327 1267 2478 1453 1888 1308 1087 717 201 594 1565 616 4",
    "Industrial": "241 1300 1741 228 2212 999 1345 1349 1749 1012 1978 1528 2041 437 1472 2083",
    "Pasture": "1139 1617 404 639 46 804 1019 1759 1034 1307 1527 1553 1056 1623 1981 760",
    "PermanentCrop": "2139 1322 847 2391 567 1342 1889 2424 939 1417 1346 349 302 262 147 332",
    "Residential": "745 815 2734 2136 1747 51 2345 1953 834 2478 216 375 2842 2171 1002 1912",
    "River": "1544 988 2405 1989 325 2242 23 641 919 1903 871 147 260 868 581 2279",
    "SeaLake": "977 2164 919 2602 329 1173 288 2911 740 2197 2391 760 2698 1152 2668 354",
}
VAL = {
    "AnnualCrop": "2105 1743 2482 1418",
    "Forest": "2729 192 936 938",
    "HerbaceousVegetation": "415 2911 2773 585",
    "Highway": "788 686 845 1624",
    "Industrial": "2173 214 1161 2187",
    "Pasture": "816 1555 1667 692",
    "PermanentCrop": "143 294 1495 2215",
    "Residential": "509 2198 1988 830",
    "River": "748 504 948 1629",
    "SeaLake": "545 1354 900 105",
}


def real_shards(source: str, out: Path) -> ShardSet:
    shards_stage.run(shards_stage.Args(str(DATA / source), out))
    return ShardSet.open(out)


@needs_data
def test_real_eurosat(tmp_path: Path) -> None:
    data = read_labelled(real_shards("eurosat/split_zhou_EuroSAT.json", tmp_path / "eurosat"))
    words = read_words("eurosat")
    draw = make_draw(data, Task("eurosat", 16, 1, "all", words))
    assert Counter(m.label for m in draw.train) == dict.fromkeys(range(10), 16)
    assert Counter(m.label for m in draw.val) == dict.fromkeys(range(10), 4)
    assert set(draw.names) == set(words.names.values())
    folders = list(words.names)  # by label, and by label they are in the split
    assert all(m.id.split("/")[0] == folders[m.label] for m in (*draw.train, *draw.val))
    base, new = (make_draw(data, Task("eurosat", 16, 1, part, words)) for part in ("base", "new"))
    assert ids(base.train) | ids(new.train) == ids(draw.train)
    assert (len(base.names), len(new.names)) == (5, 5)

    listed = [
        {"id": f"2750/{name}/{name}_{n}.jpg", "label": label, "split": split}
        for split, images in (("train", TRAIN), ("val", VAL))
        for label, (name, numbers) in enumerate(images.items())
        for n in numbers.split()
    ]
    index = index_of(tmp_path / "shot_16-seed_1.json", listed)
    published = index_draw(index, data, Task("eurosat", 16, 1, "all", words))
    assert (len(published.train), len(published.val)) == (160, 40)
    assert "AnnualCrop/AnnualCrop_2365.jpg" in ids(published.train, 0)
    assert dataclasses.replace(published, train=draw.train, val=draw.val) == draw


@needs_data
def test_real_pets(tmp_path: Path) -> None:
    data = read_labelled(real_shards("oxford_pets_5/split_zhou_OxfordPets.json", tmp_path / "pets"))
    words = read_words("oxford_pets")
    draw = make_draw(data, Task("pets", 0, 1, "all", words))
    assert draw.names[3] == "maine coon"
    assert draw.template.format(draw.names[3]) == "a photo of a maine coon, a type of pet."
    assert len(draw.train) <= 400
    few = make_draw(data, Task("pets", 8, 2, "new", words))
    assert few.names == ("maine coon", "pomeranian")
    assert (len(few.train), len(few.val)) == (16, 8)
