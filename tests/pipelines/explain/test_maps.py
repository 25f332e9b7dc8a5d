"""Maps: the same each time, as faithful as they say, and drawn with classes told apart."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.manifold import trustworthiness as reference
from threadpoolctl import threadpool_limits

from pipelines.explain import map_charts as charts
from pipelines.explain.projection import (
    Floats,
    Ints,
    align,
    neighbour_hits,
    project,
    trustworthiness,
)
from pipelines.pages import svg
from tests import ROOT
from trainables.errors import ConfigError, DataError
from trainables.media.images import decode
from trainables.models.image_tower import embed_images
from trainables.models.load import load_backbone

DATA = ROOT.parent / "shared" / "data"


def groups(
    count: int, classes: int = 3, spread: float = 0.4, width: int = 16
) -> tuple[Floats, Ints]:
    """Embeddings around the directions of their classes."""
    random = np.random.default_rng(0)
    labels = np.arange(count) % classes
    centres = random.normal(size=(classes, width))
    embeds = centres[labels] + spread * random.normal(size=(count, width))
    return embeds.astype(np.float32), labels


def unit(rows: Floats) -> Floats:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_tsne_is_the_same_each_time_whatever_the_threads() -> None:
    embeds, labels = groups(500, width=256)
    with threadpool_limits(limits=1):
        places = project(embeds, "tsne", 3)
    with threadpool_limits(limits=2):
        assert np.array_equal(places, project(embeds, "tsne", 3))
    assert places.shape == (500, 2)
    assert places.dtype == np.float32
    own = [places[labels == c].mean(0) for c in range(3)]
    nearest = np.argmin([np.linalg.norm(places - centre, axis=1) for centre in own], axis=0)
    assert (nearest == labels).mean() > 0.95


def test_a_length_changes_no_map() -> None:
    """The joint space is one of directions."""
    embeds, _ = groups(20)
    scale = np.exp2(np.arange(20) % 5)[:, None].astype(np.float32)  # exact in floating point
    assert np.array_equal(project(embeds, "tsne", 0), project(embeds * scale, "tsne", 0))


@pytest.mark.parametrize("count", [5, 6, 9])
def test_few_rows_still_make_a_map(count: int) -> None:
    embeds, labels = groups(count, spread=1.0)
    places = project(embeds, "tsne", 0)
    assert np.isfinite(places).all()
    k = (count - 1) // 2
    expected = reference(unit(embeds), places, n_neighbors=k)
    assert trustworthiness(embeds, places) == pytest.approx(expected)
    assert len(neighbour_hits(embeds, labels)) == count


def test_what_makes_no_map_says_why() -> None:
    embeds, labels = groups(8)
    with pytest.raises(DataError, match=r"at least 5 different rows for a map, got 4\."):
        project(embeds[:4], "tsne", 0)
    with pytest.raises(DataError, match=r"at least 5 different rows for a map, got 2\."):
        project(embeds[np.arange(8) % 2], "tsne", 0)
    with pytest.raises(DataError, match=r"`embeds` must be \(N, e\) .* got \(8, 1\)\."):
        project(embeds[:, :1], "tsne", 0)
    with pytest.raises(ConfigError, match=r"unknown method `tnse`\. Did you mean `tsne`\?"):
        project(embeds, "tnse", 0)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"`labels` must be one a row, 8, got 7\."):
        neighbour_hits(embeds, labels[:7])
    for value in (np.nan, np.inf, 0.0):
        broken = embeds.copy()
        broken[2] = value
        with pytest.raises(DataError, match=r"`embeds\[2\]` must have a direction"):
            project(broken, "tsne", 0)


def test_without_umap_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"`pip install cliptune\[umap\]` .* or take `tsne`"):
        project(groups(8)[0], "umap", 0)


def test_umap_is_seeded_and_quiet() -> None:
    """In a process of its own, where it need not compile itself: three seconds instead of ten."""
    if importlib.util.find_spec("umap") is None:
        pytest.skip("umap-learn is not installed (pip install cliptune[umap])")
    code = (
        "import numpy\n"
        "from pipelines.explain.projection import project\n"
        "embeds = numpy.random.default_rng(0).normal(size=(14, 8))\n"
        "maps = [project(embeds, 'umap', seed) for seed in (0, 0, 1)]\n"
        "print(maps[0].shape, (maps[0] == maps[1]).all(), (maps[0] == maps[2]).all())"
    )
    env = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        env=env,
        check=False,
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == ("(14, 2) True False\n", "")


def test_a_map_of_what_is_flat_is_trusted_and_one_at_random_is_not() -> None:
    random = np.random.default_rng(1)
    angles = random.uniform(0, 6, 200)
    circle = np.stack([np.cos(angles), np.sin(angles)], 1)
    assert trustworthiness(circle, circle) == 1.0
    assert 0.4 < trustworthiness(circle, random.normal(size=(200, 2))) < 0.6


def test_neighbours_vote_for_each_rows_label() -> None:
    embeds, labels = groups(60, classes=4, spread=2.0)
    hits = neighbour_hits(embeds, labels, k=4)  # even, so that ties happen
    cosines = unit(embeds.astype(np.float64)) @ unit(embeds.astype(np.float64)).T
    for row in range(60):
        others = [n for n in np.argsort(-cosines[row]) if n != row][:4]
        votes = np.zeros(4)
        for n in others:
            votes[labels[n]] += 1 + cosines[row, n]
        assert hits[row] == (votes.argmax() == labels[row])
    assert 0.2 < hits.mean() < 1


def test_alignment_turns_and_mirrors_but_stretches_nothing() -> None:
    places = np.random.default_rng(0).normal(size=(30, 2))
    angle = 2.1
    turn = np.array([[np.cos(angle), np.sin(angle)], [np.sin(angle), -np.cos(angle)]])  # mirrored
    moved = places @ turn + [5, -3]
    np.testing.assert_allclose(align(moved, places), places, atol=1e-5)
    other = np.random.default_rng(1).normal(size=(30, 2))
    aligned = align(other, places)
    gaps = np.linalg.norm(other[:, None] - other, axis=2)
    np.testing.assert_allclose(np.linalg.norm(aligned[:, None] - aligned, axis=2), gaps, atol=1e-5)
    assert np.square(aligned - places).sum() < np.square(other - places).sum()


def drawn(classes: list[str], texts: Floats | None = None) -> tuple[str, str]:
    random = np.random.default_rng(0)
    labels = np.arange(6 * len(classes)) % len(classes)
    if texts is None:
        texts = random.normal(size=(len(classes), 2))
    images = random.normal(size=(len(labels), 2))
    with svg.style():
        each = charts.Map(images, texts)
        return charts.before_and_after(each, charts.Map(images + 1, texts), labels, classes)


def test_maps_name_their_texts_and_colour_their_classes() -> None:
    before, after = drawn(["River", "<b>$x$</b>"])
    for chart, when in ((before, "before"), (after, "after")):
        assert f'aria-label="map of 12 images and 2 class texts {when} adaptation"' in chart
        assert ">River</text>" in chart
        assert "&lt;b&gt;$x$&lt;/b&gt;</text>" in chart
        assert "var(--hue-00)" in chart
        assert "var(--hue-01)" in chart
        assert "#0" not in re.sub(r'href="#\w+"|url\(#\w+\)', "", chart)  # every stand-in replaced
    assert drawn(["River", "<b>$x$</b>"]) == (before, after)


def test_classes_can_be_told_apart_until_the_legend_says_other() -> None:
    looks = [charts.look(index) for index in range(charts.CLASSES)]
    assert len(set(looks)) == charts.CLASSES == 54
    assert len({color for color, _ in looks}) == 9
    assert "D" not in {shape for _, shape in looks}
    assert charts.look(charts.CLASSES)[0] == svg.MUTED
    legend = charts.legend([f"class {n}" for n in range(60)])
    assert legend.count('class="glyph"') == 54 + 2
    assert "6 other classes" in legend
    assert "&lt;i&gt;" in charts.legend(["<i>"])
    assert len(drawn([f"class {n}" for n in range(60)])[0]) > 0


def test_names_of_texts_that_lie_together_do_not_cover_each_other() -> None:
    with svg.style():
        ax = svg.axes(height=charts.SIDE, width=charts.SIDE, left=12, top=12, bottom=12)
        taken: list[tuple[float, ...]] = []
        middle = np.array([charts.SIDE / 2, charts.SIDE / 2])
        for number in range(8):
            charts._name(ax, middle, f"class {number}", taken)
    assert len(taken) == 8
    for n, (left, right, low, high) in enumerate(taken):
        assert 0 <= left < right <= charts.SIDE
        for other in taken[:n]:
            across = min(right, other[1]) - max(left, other[0])
            along = min(high, other[3]) - max(low, other[2])
            assert across <= 0 or along <= 0
    crowd = drawn([f"class {n}" for n in range(50)], np.zeros((50, 2)))[0]
    assert 8 <= len(re.findall(r">class \d+</text>", crowd)) < 50


def test_vectors_beside_chance_are_filled_where_they_are_nearer() -> None:
    rows = [
        charts.Row("dog", 0.1, 0.3, 0.4, 0.01),
        charts.Row("日本\n🙌🏻…", 0.35, 0.3, 0.4, 0.7),  # no glyph in Matplotlib's font
        charts.Row("x" * 40, 0.35, 0.3, 0.4, 0.7),
    ]
    with svg.style():
        chart = charts.against_chance(rows, "cosine")
    assert chart.count("fill: var(--hue-00)") == 1
    assert chart.count("fill: var(--card); stroke: var(--hue-00)") == 2
    assert ">日本 🙌🏻…</text>" in chart
    assert f">{'x' * 23}…</text>" in chart
    assert "cosine distance to the nearest word" in chart


def test_a_real_map_of_satellite_tiles() -> None:
    if not (DATA / "eurosat").is_dir() or not (DATA / "clip-flickr8k").is_dir():
        pytest.skip("tiles and a CLIP are not here (../shared/data/eurosat, clip-flickr8k)")
    backbone = load_backbone(str(DATA / "clip-flickr8k"))
    split = json.loads((DATA / "eurosat" / "split_zhou_EuroSAT.json").read_text())["val"]
    labels = np.array([label for _, label, _ in split])
    files = [DATA / "eurosat" / "2750" / path for path, _, _ in split]
    pixels = torch.stack([backbone.preprocess.apply(decode(f.read_bytes())) for f in files])
    with torch.no_grad():
        embeds = embed_images(backbone, pixels).numpy()
    places = project(embeds, "tsne", 0)
    assert trustworthiness(embeds, places) > 0.85
    chance = np.bincount(labels).max() / len(labels)
    assert neighbour_hits(embeds, labels).mean() > 2 * chance
