"""What belongs to one image is one image: a row a caption measures what a row an image does."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipelines.encode.args import Args
from pipelines.encode.embeddings import encode_given
from pipelines.evaluate import __main__ as evaluate
from pipelines.evaluate.accuracy import ClassProtocol
from pipelines.evaluate.captions import CaptionProtocol
from pipelines.evaluate.protocol import metrics, versus
from tests.tiny import COLOURS, caption, tiny_features, tiny_lm, tiny_shards
from trainables.adapters.registry import make_config
from trainables.features.classes import Classes
from trainables.features.features import backbone_of, open_features
from trainables.features.few_shot import Draw, Member, measured
from trainables.features.lazy_parts import LazyParts
from trainables.features.split import SplitFeatures
from trainables.files import read_json, write_json
from trainables.models.backbone import Backbone
from trainables.models.language_model import load_language_model
from trainables.training.loop import Run

SPLITS = ["train"] * 10 + ["val"] * 4 + ["test"] * 6
ORDERS = ("one", "rows", "in turn")
BRIEF = {"adapter.prefix_length": 3, "adapter.layers": 1, "adapter.heads": 4}
BRIEF |= {"adapter.clip_length": 2, "adapter.max_tokens": 4}


def said(number: int) -> list[str]:
    return [caption(number), caption(number, 1), f"photo of {COLOURS[number % 6]} {number % 7}"]


def source(order: str) -> list[dict[str, Any]]:
    """Twenty images with three captions each: a row an image, a row a caption, or the first
    captions of all images in another order, then the second ones, then the third."""
    vectors = np.random.default_rng(3).normal(size=(len(SPLITS), 16)).astype(np.float32)
    images = [
        {"image_embedding": vectors[n].tolist(), "caption": said(n), "split": split}
        for n, split in enumerate(SPLITS)
    ]
    if order == "one":
        return images
    rows = [{**image, "caption": [text]} for image in images for text in image["caption"]]
    if order == "rows":
        return rows
    place = np.random.default_rng(5).permutation(len(images))
    return [rows[n] for n in sorted(range(len(rows)), key=lambda n: (n % 3, place[n // 3]))]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory, clip: Path) -> dict[str, Path]:
    base, found = tmp_path_factory.mktemp("sources"), {}
    for order in ORDERS:
        (base / order).mkdir()
        pq.write_table(pa.Table.from_pylist(source(order)), base / order / "rows.parquet")
        args = Args(embeddings=base / order, backbone=str(clip), out=base / f"{order}-features")
        found[order], _ = encode_given(args)
    return found


@pytest.fixture(scope="module")
def results(
    tmp_path_factory: pytest.TempPathFactory, stores: dict[str, Path]
) -> dict[str, dict[str, dict[str, Any]]]:
    """`evaluate`'s result of each order, by task."""
    base = tmp_path_factory.mktemp("runs")
    tiny_lm(base / "lm")
    words = {**BRIEF, "adapter.lm": str(base / "lm")}
    tasks: list[tuple[str, str, dict[str, Any], str]] = [
        ("retrieval", "projection", {}, "t2i_r1"),
        ("captioning", "prefix_captioner", words, "cider_d"),
    ]
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for task, name, values, metric in tasks:
        config = make_config(name, {"epochs": 1, "batch_size": 5, **values})
        for order, store in stores.items():
            backbone, folder = backbone_of(store), base / task / order
            train = open_features(store, "train", backbone)
            val = measured(open_features(store, "val", backbone), None, ())
            Run(config, backbone, train, val, folder, f"val/{metric}").advance()
            about = {"features": str(store), "task": task, "metric": f"val/{metric}"}
            write_json(folder / "run.json", about)
            evaluate.run(evaluate.Args(folder, bootstrap=200))
            found.setdefault(task, {})[order] = read_json(folder / "result.json")
    return found


@pytest.mark.parametrize("task", ["retrieval", "captioning"])
def test_the_baseline_is_the_same_however_the_source_has_its_rows(
    results: dict[str, dict[str, dict[str, Any]]], task: str
) -> None:
    one, rows, turns = (results[task][order]["rows"][0] for order in ORDERS)
    names = {"retrieval": {"t2i_r5@6", "t2i_medr@6", "i2t_mrr@18"}, "captioning": {"cider_d@6"}}
    assert names[task] <= one["metrics"].keys()
    assert one["metrics"].keys() == rows["metrics"].keys() == turns["metrics"].keys()
    for name, metric in one["metrics"].items():
        assert rows["metrics"][name] == pytest.approx(metric, abs=1e-6), name  # interval too
        value = turns["metrics"][name]["value"]
        assert value == pytest.approx(metric["value"], abs=1e-6), name
    for other in (rows, turns):
        assert other["val"] == pytest.approx(one["val"], abs=1e-6)


def test_the_result_tells_rows_from_images(
    results: dict[str, dict[str, dict[str, Any]]],
) -> None:
    for task in ("retrieval", "captioning"):
        for order, repeated in (("one", 0), ("rows", 12), ("in turn", 12)):
            result = results[task][order]
            about = result["data"]
            assert (about["images"], about["captions"]) == (6, 18)
            assert about["duplicated_image_rows"]["rows"] == repeated
            told = [line for line in result["protocol"] if f"{repeated} of 18 image rows" in line]
            assert len(told) == (repeated > 0)


def test_val_in_training_has_the_captions_of_all_rows(
    stores: dict[str, Path], tmp_path: Path
) -> None:
    found = {}
    for order, store in stores.items():
        backbone = backbone_of(store)
        val = measured(open_features(store, "val", backbone), None, ())
        assert [len(own) for own in val.references.sentences] == [3] * 4
        train = open_features(store, "train", backbone)
        run = Run(make_config("zero_shot"), backbone, train, val, tmp_path / order, "val/t2i_r1")
        row = run.advance()
        found[order] = {name: v for name, v in row.items() if name.startswith("val/")}
    assert "val/i2t_medr" in found["one"]
    assert found["rows"] == pytest.approx(found["one"], abs=1e-6)
    assert found["in turn"] == pytest.approx(found["one"], abs=1e-6)


def features(captions: list[list[str]], images: list[int], backbone: Backbone) -> SplitFeatures:
    texts = [text for own in captions for text in own]
    rows = torch.arange(len(captions)).repeat_interleave(torch.tensor([len(c) for c in captions]))
    return SplitFeatures(
        ids=[str(row) for row in range(len(captions))],
        image_embeds=torch.eye(16)[images],
        pixels=None,
        tokens=backbone.tokenize(texts)[0],
        caption_rows=rows,
        groups=torch.tensor(images),
        lazy=LazyParts(backbone, "val", kept={"texts": texts}),
    )


def test_a_row_adds_what_earlier_rows_do_not_have(backbone: Backbone) -> None:
    """Two equal captions of one row are two, as in COCO; those of two rows are one."""
    captions = [["a", "b", "a"], ["dog"], ["b", "c", "a", "a", "a"], ["dog", "dog"], ["c", "d"]]
    data = features(captions, [2, 0, 2, 0, 2], backbone).one_row_an_image()
    assert data.ids == ["0", "1"]
    assert data.texts_of_images() == [["a", "b", "a", "c", "a", "d"], ["dog", "dog"]]
    assert data.groups.tolist() == [2, 0]
    tokens = backbone.tokenize(data.texts())[0]
    assert torch.equal(data.tokens.ids, tokens.ids)
    assert torch.equal(data.tokens.offsets, tokens.offsets)
    assert torch.equal(data.image_embeds, torch.eye(16)[[2, 0]])
    assert data.one_row_an_image() is data


def test_captions_given_as_embeddings_are_equal_where_those_are(backbone: Backbone) -> None:
    """Their words may be no more than numbers."""
    data = features([["text 0"], ["text 1"], ["text 2"], ["text 3"]], [0, 1, 0, 0], backbone)
    given = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]).half()
    found = replace(data, given_texts=given).one_row_an_image()
    assert found.texts_of_images() == [["text 0", "text 3"], ["text 1"]]
    assert torch.equal(found.text_embeds(), given[[0, 3, 1]].float())


def test_a_labelled_image_is_one_too_and_two_under_two_labels(backbone: Backbone) -> None:
    data = features([["a"], ["b"], ["c"], ["d"]], [0, 0, 1, 0], backbone)
    taken = data.take({"0": 0, "1": 0, "2": 1, "3": 1}, Classes(("x", "y"), "{}"))
    found = taken.one_row_an_image()
    assert (found.ids, found.labels.tolist()) == (["0", "2", "3"], [0, 1, 1])  # type: ignore[union-attr]
    assert found.groups.tolist() == [0, 1, 0]
    assert found.texts_of_images() == [["a", "b"], ["c"], ["d"]]
    wordless = features([[], [], []], [0, 0, 1], backbone)
    some = wordless.take({"0": 0, "1": 0, "2": 1}, Classes(("x", "y"), "{}"))
    assert some.one_row_an_image().ids == ["0", "2"]
    right = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    measured = ClassProtocol(some.one_row_an_image(), 100).measure(right, 1.0)
    assert measured.summary["accuracy"] == 0.5  # of two images, not of three rows


def test_a_test_image_under_two_labels_is_in_no_task(backbone: Backbone) -> None:
    data = features([["a"], ["b"], ["c"], ["d"], ["e"]], [0, 0, 1, 2, 2], backbone)
    members = tuple(Member(f"t{label}", f"{label:02}", label) for label in (0, 1))
    others = tuple(replace(one, id=f"v{one.id}", sha256=f"v{one.sha256}") for one in members)
    draw = Draw("x", "ab", 1, 1, "all", ("cat", "dog"), (3, 5), "{}", members, others)
    rows = [{"id": str(n), "label": label} for n, label in enumerate((3, 7, 3, 5, 5))]
    assert draw.among(data, rows).ids == ["2", "3", "4"]  # 7 is of no class of the draw


def test_what_is_made_of_captions_is_a_parts_own(
    tmp_path: Path, clip: Path, backbone: Backbone
) -> None:
    shards = tiny_shards(tmp_path / "shards", duplicates=3)
    folder = tiny_features(tmp_path / "store", val=8, duplicates=3, clip=clip, shards=shards)
    whole = open_features(folder, "train", backbone)
    lm = load_language_model(str(tiny_lm(tmp_path / "lm")))
    classes = Classes(("x", "y"), "{}")
    taken = whole.take({"train-003": 0, "train-005": 1, "train-022": 0}, classes)
    again = taken.take({"train-022": 0}, classes)
    rows = {id(taken): [3, 5, 22], id(again): [22]}
    for part in (again, taken):
        texts = [caption(row, v) for row in rows[id(part)] for v in (0, 1)]
        assert part.texts() == texts
        assert part.references.sentences[0][0].words == texts[0].split()
        assert torch.equal(part.words(lm).ids, lm.tokenize(texts).ids)
        places = [2 * row + v for row in rows[id(part)] for v in (0, 1)]
        assert torch.equal(part.text_embeds(), whole.text_embeds()[places])
    assert len(whole.references) == 24
    merged = whole.one_row_an_image()
    assert merged.ids == whole.ids[:21]
    assert Counter(merged.texts()) == Counter(whole.texts())
    assert torch.equal(merged.caption_rows.bincount()[:4], torch.tensor([4, 4, 4, 2]))


def test_of_one_labelled_or_captioned_image_no_number_is_missing(backbone: Backbone) -> None:
    data = features([["a dog"]], [0], backbone)
    labelled = ClassProtocol(data.take({"0": 1}, Classes(("x", "y"), "{}")), 100)
    right, wrong = (labelled.measure(torch.tensor([own]), 1.0) for own in ([0.0, 1], [1.0, 0]))
    spoken = CaptionProtocol(data, backbone, 100)
    said, other = spoken.measure(["a dog"]), spoken.measure(["a cat in the park"])
    for protocol, ours, theirs in ((labelled, right, wrong), (spoken, said, other)):
        gaps = versus(ours, theirs, protocol)
        assert {gap["p"] for gap in gaps.values()} == {1}
        numbers = [*metrics(ours, protocol).values(), *gaps.values()]
        assert all(np.isfinite([*one.values()]).all() for one in numbers)
        assert any(gap["difference"] for gap in gaps.values())
    assert "change where these classes and these trained" in " ".join(labelled.text("accuracy"))
    assert "change where CIDEr's weights and these trained" in " ".join(spoken.text("cider_d"))
