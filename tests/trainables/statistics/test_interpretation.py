"""Nearest words, their null, ablation and stability, against independent formulas."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests import ROOT
from tests.tiny import tiny_clip
from trainables.errors import ConfigError, DataError
from trainables.models.backbone import Backbone
from trainables.models.load import load_backbone
from trainables.models.text_tower import word_vectors
from trainables.models.vocabulary import Measure, Vocabulary
from trainables.statistics.chance import correct
from trainables.statistics.interpretation import ablation, against_random, nearest_words, stability

REAL = ROOT.parent / "shared" / "data" / "clip-flickr8k"
MEASURES: tuple[Measure, ...] = ("euclidean", "cosine")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def table_of(backbone: Backbone) -> Tensor:
    return backbone.model.text_model.embeddings.token_embedding.weight.detach()


def distances(rows: Tensor, table: Tensor, measure: Measure) -> Tensor:
    """By definition, in double precision: (R, V)."""
    rows, table = rows.double(), table.double()
    if measure == "euclidean":
        return (rows[:, None] - table).norm(dim=2)
    return 1 - torch.cosine_similarity(rows[:, None], table, dim=2)


@pytest.mark.parametrize("measure", MEASURES)
def test_nearest_words_equal_a_search_of_the_whole_table(
    backbone: Backbone, measure: Measure
) -> None:
    vectors = noise(3, 4, backbone.text_width) * 0.05
    near = nearest_words(vectors, backbone, 6, measure)
    special = sorted(set(backbone.tokenizer.all_special_ids))
    every = distances(vectors.flatten(0, 1), table_of(backbone), measure)
    every[:, special] = torch.inf
    expected = every.sort(1)
    assert near.tokens.shape == near.distances.shape == (3, 4, 6)
    assert near.tokens.flatten(0, 1).tolist() == expected.indices[:, :6].tolist()
    torch.testing.assert_close(
        near.distances.flatten(0, 1).double(), expected.values[:, :6], atol=1e-6, rtol=1e-5
    )


def test_a_words_own_embedding_is_that_word_at_distance_zero(backbone: Backbone) -> None:
    vectors = word_vectors(backbone, "a red dog")
    for scale, measure in ((1.0, "euclidean"), (7.0, "cosine")):
        near = nearest_words(vectors * scale, backbone, 2, measure)
        assert [str(near.words(m)[0][0]) for m in range(3)] == ["a", "red", "dog"]
        assert [near.words(m)[0][0].whole for m in range(3)] == [True] * 3
        assert float(near.distances[:, 0].max()) < 1e-6
        assert float(near.distances[:, 1].min()) > 1e-3


def test_pieces_are_spelled_as_a_reader_knows_them() -> None:
    pieces = ["dog</w>", "pho", "cafÃ©</w>", "ðŁĲķ</w>", "ðŁĺ", "<added word>"]
    words = Vocabulary(torch.arange(6), torch.eye(6), pieces, "clip")
    shown = [(str(words.word(i)), words.word(i).whole) for i in range(6)]
    assert shown == [
        ("dog", True),
        ("pho…", False),
        ("café", True),
        ("🐕", True),
        ("<F0 9F 98>…", False),
        ("<added word>…", False),
    ]
    words = Vocabulary(torch.arange(2), torch.eye(2), ["▁dog", "s"], "siglip")
    assert [(str(words.word(i)), words.word(i).whole) for i in (0, 1)] == [
        ("dog", True),
        ("…s", False),
    ]


def test_rows_that_no_text_can_reach_are_no_words(tmp_path: Path) -> None:
    backbone = load_backbone(str(tiny_clip(tmp_path, vocab_size=700)))
    size = len(backbone.tokenizer)
    table_of(backbone)[5] = 0  # as padding rows are
    tokens = set(Vocabulary.of(backbone).tokens.tolist())
    assert size < 700
    assert tokens == set(range(size)) - {5} - set(backbone.tokenizer.all_special_ids)


@pytest.mark.parametrize("measure", MEASURES)
def test_the_null_is_the_nearest_word_of_random_vectors_of_the_same_norm(
    backbone: Backbone, measure: Measure
) -> None:
    width, draws = backbone.text_width, 300
    norms = torch.tensor([0.0, 0.01, 0.1, 0.1, 0.5, 3.0, 40.0])
    vectors = torch.nn.functional.normalize(noise(7, width, seed=1), dim=1) * norms[:, None]
    vectors[3] = word_vectors(backbone, "dog")[0] * 1.01
    norms = vectors.double().norm(dim=1)
    chance = against_random(vectors, backbone, measure, draws=draws, seed=4)
    table = table_of(backbone)[Vocabulary.of(backbone).tokens]
    directions = noise(draws, width, seed=4).double()
    directions /= directions.norm(dim=1, keepdim=True)
    for m, vector in enumerate(vectors):
        length = norms[m] if measure == "euclidean" else 1.0  # which an angle does not know
        null = distances(directions * length, table, measure).amin(1)
        own = distances(vector[None], table, measure).amin()
        tolerance = {"atol": 1e-5, "rtol": 1e-5}
        torch.testing.assert_close(chance.low[m], null.quantile(0.05), **tolerance)
        torch.testing.assert_close(chance.high[m], null.quantile(0.95), **tolerance)
        torch.testing.assert_close(chance.nearest[m], own, **tolerance)
        p = (int((null <= own + 1e-9).sum()) + 1) / (draws + 1)
        assert float(chance.p[m]) == pytest.approx(p, abs=2 / draws)
    assert float(chance.p[3]) == pytest.approx(1 / (draws + 1))
    assert float(chance.p[0]) == 1.0  # no direction at all


def test_random_vectors_are_as_near_as_chance_says(backbone: Backbone) -> None:
    vectors = noise(20, 20, backbone.text_width, seed=2) * 0.02
    for measure in MEASURES:
        chance = against_random(vectors, backbone, measure, draws=400, seed=0, correction="bh")
        assert chance.p.shape == (20, 20)
        assert 0.01 < float((chance.p <= 0.05).double().mean()) < 0.12
        assert 0.4 < float(chance.p.mean()) < 0.6
        assert int((chance.corrected <= 0.05).sum()) == 0
        again = against_random(vectors, backbone, measure, draws=400, seed=0, correction="bh")
        assert torch.equal(chance.p, again.p)
        other = against_random(vectors, backbone, measure, draws=400, seed=1)
        assert not torch.equal(chance.p, other.p)


def test_corrections_equal_their_definitions() -> None:
    p = np.array([0.01, 0.04, 0.03, 0.005, 0.6, 0.03])
    holm = [max((6 - sum(p < q)) * q for q in p if q <= own) for own in p]
    np.testing.assert_allclose(correct(p, "holm"), np.minimum(holm, 1))
    share = [min(6 * q / sum(p <= q) for q in p if q >= own) for own in p]
    np.testing.assert_allclose(correct(p, "bh"), share)
    assert correct(np.array([0.9, 0.8]), "holm").tolist() == [1.0, 1.0]


@pytest.mark.parametrize("shape", [(3,), (5, 3)])
def test_ablation_takes_out_and_replaces_one_vector_at_a_time(
    backbone: Backbone, shape: tuple[int, ...]
) -> None:
    vectors = noise(*shape, backbone.text_width)
    seen = []

    def measure(prompt: Tensor) -> float:
        seen.append(tuple(prompt.shape))
        return float(prompt.double().sum())

    found = ablation(vectors, backbone, measure)
    own = vectors.double().sum(-1).reshape(-1, 3).sum(0)  # what each position adds
    words = table_of(backbone)[Vocabulary.of(backbone).tokens]
    mean = float(words.double().mean(0).sum()) * (vectors.shape[0] if len(shape) == 2 else 1)
    assert found.full == pytest.approx(float(own.sum()))
    assert found.removed == pytest.approx(own.tolist(), abs=1e-4)
    assert found.replaced == pytest.approx((own - mean).tolist(), abs=1e-4)
    whole = (*shape, backbone.text_width)
    assert seen == [whole, *[(*shape[:-1], 2, backbone.text_width), whole] * 3]


def test_stability_finds_the_best_matching(backbone: Backbone) -> None:
    width, size, k = backbone.text_width, 4, 5
    one, two = noise(2, size, width, seed=3), noise(2, size, width, seed=4)
    found = stability([one, two], backbone, k=k, draws=20)
    near = [nearest_words(prompt, backbone, k, "cosine").tokens for prompt in (one, two)]
    rows = []
    for c in range(2):
        cosines = torch.cosine_similarity(one[c][:, None], two[c], dim=2)
        match = max(
            itertools.permutations(range(size)),
            key=lambda order: sum(float(cosines[m, n]) for m, n in enumerate(order)),
        )
        row = []
        for order in (tuple(range(size)), match):
            row.append(np.mean([float(cosines[m, n]) for m, n in enumerate(order)]))
            sets = [
                (set(near[0][c, m].tolist()), set(near[1][c, n].tolist()))
                for m, n in enumerate(order)
            ]
            row.append(np.mean([len(a & b) / len(a | b) for a, b in sets]))
        rows.append([row[0], row[2], row[1], row[3]])
    agreement = found.pairs[0, 1]
    values = (agreement.cosine, agreement.matched_cosine, agreement.words, agreement.matched_words)
    assert values == pytest.approx(np.mean(rows, 0).tolist(), abs=1e-5)
    assert found.mean == agreement


def test_stability_of_equal_and_of_reordered_prompts_beside_chance(backbone: Backbone) -> None:
    prompt = noise(6, backbone.text_width)
    found = stability([prompt, prompt.clone(), prompt.roll(1, 0)], backbone, k=4, draws=60, seed=1)
    same, moved = found.pairs[0, 1], found.pairs[0, 2]
    assert (same.cosine, same.words) == pytest.approx((1, 1), abs=1e-5)
    assert (moved.matched_cosine, moved.matched_words) == pytest.approx((1, 1), abs=1e-5)
    assert moved.cosine < 0.5 > moved.words
    assert abs(found.random.cosine) < 0.06 < found.random.matched_cosine < 0.4
    assert found.random.cosine < found.random_high.cosine < 0.3
    assert found == stability([prompt, prompt, prompt.roll(1, 0)], backbone, k=4, draws=60, seed=1)


def test_what_cannot_be_read_says_why(backbone: Backbone) -> None:
    with pytest.raises(DataError, match=r"`vectors` must be \(M, 32\) .* got \(4, 16\)\."):
        nearest_words(noise(4, 16), backbone, 1, "cosine")
    with pytest.raises(DataError, match=r"`vectors` must be .* got \(0, 32\)\."):
        ablation(noise(0, 32), backbone, lambda prompt: 0.0)
    broken = noise(2, 3, 32)
    broken[1, 2, 7] = torch.nan
    with pytest.raises(DataError, match=r"`vectors\[1, 2\]` must be finite"):
        against_random(broken, backbone, "cosine")
    with pytest.raises(DataError, match=r"`prompts\[1\]` must have the shape .*\(4, 32\), got \(3"):
        stability([noise(4, 32), noise(3, 32)], backbone)
    with pytest.raises(ConfigError, match=r"`prompts` must be of at least 2 seeds, got 1\."):
        stability([noise(4, 32)], backbone)
    with pytest.raises(ConfigError, match=r"`k` must be from 1 to \d+, got 0\."):
        nearest_words(noise(4, 32), backbone, 0, "cosine")


def test_words_of_a_real_clip_are_found_again_under_noise() -> None:
    if not REAL.is_dir():
        pytest.skip("the small real CLIP is not here (../shared/data/clip-flickr8k)")
    backbone = load_backbone(str(REAL))
    spread = float(table_of(backbone).std())
    words = word_vectors(backbone, "a photo of a dog")
    vectors = torch.cat([words + noise(*words.shape) * spread / 3, noise(3, 192, seed=1) * spread])
    for measure in MEASURES:
        near = nearest_words(vectors, backbone, 1, measure)
        assert [str(near.words(m)[0][0]) for m in range(5)] == ["a", "photo", "of", "a", "dog"]
        chance = against_random(vectors, backbone, measure, draws=199)
        assert chance.p[:5].tolist() == pytest.approx([1 / 200] * 5)
        assert float(chance.corrected[5:].min()) > 0.05
