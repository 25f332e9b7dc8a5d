"""Exact ranks against an argsort: ties, several positives, duplicated rows, bounded memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from trainables.data.batches import Predictions
from trainables.errors import DataError
from trainables.metrics import retrieval
from trainables.metrics.retrieval import Ranks, mutual_ranks, ranks, retrieval_metrics


def unit(rows: int, width: int = 16, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(rows, width, generator=random), dim=1)


def pool(
    images: int, captions_each: int, seed: int = 0, width: int = 16
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images, captions near them, and both groups, captions in a shuffled order."""
    pictures = unit(images, width, seed)
    groups = torch.arange(images).repeat_interleave(captions_each)
    groups = groups[torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed))]
    noise = unit(len(groups), width, seed + 1)
    texts = torch.nn.functional.normalize(pictures[groups] + 1.5 * noise, dim=1)
    return pictures, texts, torch.arange(images), groups


def brute_force(queries: Tensor, candidates: Tensor, own: Tensor, other: Tensor) -> list[int]:
    """The first place of any positive in a full sort: the textbook definition."""
    places = []
    for query, group in zip(queries.double(), own, strict=True):
        order = (candidates.double() @ query).argsort(descending=True)
        places.append(1 + int((other[order] == group).nonzero()[0]))
    return places


@pytest.mark.parametrize("tile", [(512, 2048), (7, 13), (1, 1), (64, 3)])
def test_ranks_equal_a_full_sort_in_both_directions(tile: tuple[int, int]) -> None:
    images, texts, image_groups, caption_groups = pool(41, 5)
    of_images, of_captions = mutual_ranks(images, texts, image_groups, caption_groups, tile)
    expected = brute_force(images, texts, image_groups, caption_groups)
    assert (of_images.above + 1).tolist() == expected
    expected = brute_force(texts, images, caption_groups, image_groups)
    assert (of_captions.above + 1).tolist() == expected
    assert len(set(expected)) > 5  # not all first: the case is worth testing
    assert not of_images.ties.any()
    assert not of_captions.ties.any()


def test_one_direction_is_the_first_of_two() -> None:
    images, texts, image_groups, caption_groups = pool(30, 2)
    one = ranks(texts, images, caption_groups, image_groups, tile=(8, 8))
    two = mutual_ranks(images, texts, image_groups, caption_groups)[1]
    assert torch.equal(one.above, two.above)


def test_equal_candidates_are_ties_wherever_they_stand() -> None:
    """The same vector far apart, in a tile's body and its ragged edge, has the same score."""
    images, texts, image_groups, caption_groups = pool(203, 1)
    twins = torch.cat([images, images, images[:50]])
    groups = torch.cat([image_groups, image_groups + 1000, image_groups[:50] + 2000])
    texts = torch.cat([texts, twins[203:]])  # each copy has a caption of its own
    caption_groups = torch.cat([caption_groups, groups[203:]])
    found = ranks(texts, twins, caption_groups, groups, tile=(37, 101))
    copies = 1 + (caption_groups % 1000 < 50).long()
    assert torch.equal(found.ties, copies)


def test_random_tie_breaking_is_exact() -> None:
    found = Ranks(torch.tensor([0, 3, 9, 0]), torch.tensor([0, 0, 0, 4]))
    assert found.hit(1).tolist() == [1, 0, 0, 1 / 5]
    assert found.hit(4).tolist() == [1, 1, 0, 4 / 5]
    assert found.hit(10).tolist() == [1, 1, 1, 1]
    assert found.expected().tolist() == [1, 4, 10, 3]
    harmonic = (1 + 1 / 2 + 1 / 3 + 1 / 4 + 1 / 5) / 5
    assert found.reciprocal().tolist() == pytest.approx([1, 1 / 4, 1 / 10, harmonic], rel=1e-12)


def test_a_collapsed_model_scores_as_chance() -> None:
    _, _, image_groups, caption_groups = pool(40, 5)
    same = Predictions(unit(1).expand(40, -1), unit(1).expand(200, -1))
    metrics = retrieval_metrics(same, image_groups, caption_groups)
    assert metrics["t2i_r1"] == pytest.approx(1 / 40)
    assert metrics["t2i_r10"] == pytest.approx(10 / 40)
    assert metrics["t2i_medr"] == 20.5
    # Of the five captions one is taken to be in the tie with the 195 of the others.
    assert metrics["i2t_r1"] == pytest.approx(1 / 196)


def test_other_positives_do_not_count_against_the_best() -> None:
    query = torch.tensor([[1.0, 0.0]])
    candidates = torch.tensor([[0.6, 0.8], [1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    groups = torch.tensor([0, 0, 1, 1])
    others = torch.cat([query, torch.tensor([[0.0, 1.0]])])
    found = ranks(others, candidates, torch.tensor([0, 1]), groups)
    assert found.above.tolist() == [0, 0]
    found = ranks(others, candidates, torch.tensor([1, 0]), groups)
    assert found.above.tolist() == [1, 1]


def test_a_caption_may_find_either_copy_of_its_image() -> None:
    """Two rows with the same bytes: naive row = column matching scores one half, groups score 1."""
    images = unit(6).repeat_interleave(2, 0)  # (12, e) each image twice
    groups = torch.arange(6).repeat_interleave(2)
    metrics = retrieval_metrics(Predictions(images, images.clone()), groups, groups)
    assert metrics["t2i_r1"] == metrics["i2t_r1"] == 1
    naive = retrieval_metrics(
        Predictions(images, images.clone()), torch.arange(12), torch.arange(12)
    )
    assert naive["t2i_r1"] == pytest.approx(0.5)


def test_metrics_are_the_textbook_ones() -> None:
    images, texts, image_groups, caption_groups = pool(60, 3, seed=4)
    metrics = retrieval_metrics(Predictions(images, texts), image_groups, caption_groups)
    place = np.array(brute_force(texts, images, caption_groups, image_groups))
    assert metrics["t2i_r1"] == pytest.approx((place <= 1).mean())
    assert metrics["t2i_r5"] == pytest.approx((place <= 5).mean())
    assert metrics["t2i_r10"] == pytest.approx((place <= 10).mean())
    assert metrics["t2i_medr"] == np.median(place)
    assert metrics["t2i_mrr"] == pytest.approx((1 / place).mean())
    assert set(metrics) == {
        f"{way}_{name}" for way in ("t2i", "i2t") for name in ("r1", "r5", "r10", "medr", "mrr")
    }


def test_nan_embeddings_are_refused_and_not_ranked_first() -> None:
    images, texts, image_groups, caption_groups = pool(10, 1)
    texts[3, 2] = torch.nan
    with pytest.raises(DataError, match="finite, got 1 with NaN"):
        mutual_ranks(images, texts, image_groups, caption_groups)


def test_a_query_without_a_positive_is_refused() -> None:
    images, texts, image_groups, caption_groups = pool(10, 1)
    keep = caption_groups != 4
    with pytest.raises(DataError, match="`row` must have a positive, 1 have none"):
        mutual_ranks(images, texts[keep], image_groups, caption_groups[keep])


class Largest(TorchDispatchMode):
    """Notes the size of the largest tensor made, inside composite operations too."""

    def __init__(self, *inputs: Tensor) -> None:
        super().__init__()
        self.inputs = {tensor.data_ptr() for tensor in inputs}
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.data_ptr() not in self.inputs:
            self.elements = max(self.elements, out.numel())
        return out


def test_no_tensor_is_larger_than_a_tile() -> None:
    """Neither the score matrix nor a copy of the inputs is ever made."""
    images, texts, image_groups, caption_groups = pool(300, 5, width=64)
    tile = (64, 256)
    with Largest(images, texts) as seen:
        mutual_ranks(images, texts, image_groups, caption_groups, tile)
    assert seen.elements == 64 * 256


def test_the_stated_memory_bound_of_the_default_tiles() -> None:
    """Kept tiles, the tile at work, and its masks and counts stay under half a GiB."""
    tile = retrieval.TILE[0] * retrieval.TILE[1] * 4
    assert (retrieval.KEPT + 8) * tile < 2**29
