"""The objective, against references written out pair by pair, and its edge cases."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from trainables.config import LossConfig, TemperatureConfig
from trainables.errors import DataError
from trainables.features.neighbours import nearest_images
from trainables.losses.losses import Objective, entropy_share, infonce, log_weights, siglip
from trainables.models.backbone import Backbone

CLIP = cast(Backbone, SimpleNamespace(kind="clip", scale=100.0, bias=0.0))
SIGLIP = cast(Backbone, SimpleNamespace(kind="siglip", scale=110.0, bias=-12.5))

NOW = torch.tensor(0.0)  # of a run's progress


def embeddings(
    seed: int = 0, images: int = 6, each: int = 2
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images (B, e), captions (M, e) near their image, and both sides' groups."""
    random = torch.Generator().manual_seed(seed)
    image = torch.randn(images, 8, generator=random)
    groups = torch.arange(images)
    caption_groups = groups.repeat_interleave(each)
    text = image[caption_groups] + torch.randn(images * each, 8, generator=random)
    return image, text, groups, caption_groups


def objective(
    loss: dict[str, Any] | None = None,
    temperature: dict[str, Any] | None = None,
    backbone: Backbone = CLIP,
) -> Objective:
    return Objective(LossConfig(**(loss or {})), TemperatureConfig(**(temperature or {})), backbone)


# -- InfoNCE ------------------------------------------------------------------------------------


def test_one_caption_an_image_is_the_loss_of_clip() -> None:
    images, texts, groups, captions = embeddings(each=1)
    loss, numbers = objective(temperature={"scale": 20.0})(images, texts, groups, captions, NOW)
    logits = 20 * F.normalize(images, dim=1) @ F.normalize(texts, dim=1).T
    labels = torch.arange(6)
    expected = 0.5 * (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels))
    torch.testing.assert_close(loss, expected)
    assert numbers["loss"] == pytest.approx(expected.item())
    assert numbers["scale"] == 20


def test_label_smoothing_is_that_of_torch() -> None:
    images, texts, groups, _ = embeddings(each=1)
    logits = images @ texts.T
    same = groups[:, None] == groups
    smooth = [F.cross_entropy(x, groups, label_smoothing=0.1) for x in (logits, logits.T)]
    torch.testing.assert_close(infonce(logits, same, 0.1), sum(smooth) / 2)


def test_multi_positives_against_a_loop_over_pairs() -> None:
    random = torch.Generator().manual_seed(1)
    logits = torch.randn(4, 6, generator=random, dtype=torch.float64)
    image_groups, caption_groups = [7, 3, 7, 5], [3, 7, 5, 7, 3, 3]  # images 0 and 2 are the same

    def direction(rows: list[int], columns: list[int], at: Tensor) -> float:
        total = 0.0
        for i, row in enumerate(rows):
            denominator = sum(math.exp(at[i, j]) for j in range(len(columns)))
            positives = [j for j, column in enumerate(columns) if column == row]
            total += -sum(at[i, j].item() - math.log(denominator) for j in positives) / len(
                positives
            )
        return total / len(rows)

    to_text = direction(image_groups, caption_groups, logits)
    to_image = direction(caption_groups, image_groups, logits.T)
    same = torch.tensor(image_groups)[:, None] == torch.tensor(caption_groups)
    assert infonce(logits, same).item() == pytest.approx((to_text + to_image) / 2)


@settings(max_examples=25, deadline=None)
@given(
    st.permutations(range(5)), st.permutations(range(10)), st.sampled_from(["infonce", "siglip"])
)
def test_order_does_not_matter(rows: list[int], columns: list[int], kind: str) -> None:
    images, texts, groups, captions = embeddings(images=5)
    same = groups[:, None] == captions
    logits = images @ texts.T
    loss = {"infonce": infonce, "siglip": siglip}[kind]
    shuffled = loss(logits[rows][:, columns], same[rows][:, columns], 0.1, 0.5)
    torch.testing.assert_close(shuffled, loss(logits, same, 0.1, 0.5))


def test_the_captions_of_one_image_do_not_repel_each_other() -> None:
    images, texts, groups, captions = embeddings(images=2, each=2)
    same = groups[:, None] == captions
    logits = (images @ texts.T).requires_grad_()
    infonce(logits, same).backward()
    assert logits.grad is not None
    assert (logits.grad[~same] > 0).all()  # true negatives are pushed away
    perfect = torch.where(same, 50.0, -50.0)
    assert infonce(perfect, same).item() == pytest.approx(math.log(2) / 2)  # the targets' entropy


# -- SigLIP -------------------------------------------------------------------------------------


def test_siglip_against_a_loop_over_pairs() -> None:
    images, texts, groups, captions = embeddings(images=3)
    model = objective({"kind": "siglip"}, {"scale": 7.0}, SIGLIP)
    loss, _ = model(images, texts, groups, captions, NOW)
    total = 0.0
    for i, image in enumerate(images):
        for j, text in enumerate(texts):
            z = 1 if groups[i] == captions[j] else -1
            s = F.cosine_similarity(image, text, dim=0).item()
            total += math.log1p(math.exp(-z * (7 * s - 12.5)))
    assert loss.item() == pytest.approx(total / 3, rel=1e-5)
    loss.backward()
    assert model.bias.grad is not None


def test_siglip_bias_starts_where_as_many_pairs_are_positive_as_truly_are() -> None:
    images, texts, groups, captions = embeddings()
    model = objective({"kind": "siglip"})
    first, _ = model(images, texts, groups, captions, NOW)
    logits = 100 * F.normalize(images, dim=1) @ F.normalize(texts, dim=1).T + model.bias
    assert int((logits > -1e-3).sum()) == len(captions)
    bias = model.bias.item()
    other = embeddings(seed=5)
    model(*other, NOW)
    assert model.bias.item() == bias  # by the first batch alone
    again = objective({"kind": "siglip"})
    again.load_state_dict(model.state_dict())
    again(*other, NOW)
    assert again.bias.item() == bias  # also after a restart
    assert math.isfinite(first.item())


def test_siglip_keeps_the_bias_of_a_siglip_backbone() -> None:
    model = objective({"kind": "siglip"}, backbone=SIGLIP)
    model(*embeddings(), 0.0)
    assert model.bias.item() == -12.5


# -- hard negatives -----------------------------------------------------------------------------


def test_reweighting_by_hand() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0]], requires_grad=True)
    negative = torch.tensor([[False, True, True]])
    weights = log_weights(logits, negative, 0.5).exp()
    mean = (math.exp(0.5) + 1) / 2
    expected = torch.tensor([[1.0, math.exp(0.5) / mean, 1 / mean]])
    torch.testing.assert_close(weights, expected)
    assert not weights.requires_grad


@pytest.mark.parametrize("loss", [infonce, siglip])
def test_hardness_shifts_the_gradient_to_the_hardest_negative(loss: Any) -> None:
    same = torch.eye(4, dtype=torch.bool)
    logits = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    shares = []
    for hardness in (0.0, 1.0):
        x = logits.clone().requires_grad_()
        loss(x, same, 0.0, hardness).backward()
        assert x.grad is not None
        negatives = x.grad[0, 1:]
        shares.append(negatives[x[0, 1:].argmax()] / negatives.sum())
    assert shares[1] > shares[0]
    torch.testing.assert_close(loss(logits, same, 0.0, 1e-9), loss(logits, same))


def test_hardness_counts_only_where_asked_for() -> None:
    batch = embeddings()
    plain, _ = objective()(*batch, NOW)
    unused, _ = objective({"hardness": 3.0})(*batch, NOW)
    mined, _ = objective({"hard_negatives": "mined"})(*batch, NOW)
    reweighted, _ = objective({"hard_negatives": "reweight", "hardness": 3.0})(*batch, NOW)
    assert plain == unused == mined != reweighted


@pytest.mark.parametrize("tile", [3, 7, 64])
def test_nearest_images_are_the_nearest_of_other_groups(tile: int) -> None:
    random = torch.Generator().manual_seed(0)
    embeds = torch.randn(20, 4, generator=random)
    embeds[10:15] = embeds[:5] * 3  # the same pictures again
    groups = torch.arange(20)
    groups[10:15] = groups[:5]
    found = nearest_images(embeds, 4, groups, tile)
    assert found.shape == (20, 4)
    unit = F.normalize(embeds, dim=1)
    for row in range(20):
        others = [j for j in range(20) if groups[j] != groups[row]]
        best = sorted(-(unit[row] @ unit[j]).item() for j in others)[:4]
        got = [-(unit[row] @ unit[j]).item() for j in found[row]]
        assert got == pytest.approx(best, abs=1e-6)
        assert set(found[row].tolist()) <= set(others)


def test_nearest_images_with_few_images() -> None:
    embeds = torch.eye(3)
    assert nearest_images(embeds, 20, torch.tensor([0, 0, 1])).tolist() == [[2], [2], [0]]
    with pytest.raises(DataError, match="at least 2 different images, got 1"):
        nearest_images(embeds, 1, torch.zeros(3, dtype=torch.int64))


# -- temperature --------------------------------------------------------------------------------


def test_the_scale_is_the_backbones_unless_given() -> None:
    batch = embeddings()
    assert objective()(*batch, NOW)[1]["scale"] == 100
    assert objective(backbone=SIGLIP)(*batch, NOW)[1]["scale"] == 110
    assert objective(temperature={"scale": 5.0})(*batch, NOW)[1]["scale"] == 5


def test_cosine_follows_progress() -> None:
    model = objective(temperature={"policy": "cosine", "scale": 100.0, "final": 20.0})
    scales = [model(*embeddings(), torch.tensor(p))[1]["scale"] for p in (0.0, 0.5, 1.0)]
    assert scales == pytest.approx([100, 60, 20])


def test_learned_is_clamped_and_comes_back() -> None:
    model = objective(temperature={"policy": "learned", "scale": 500.0, "high": 50.0})
    assert [name for name, _ in model.named_parameters()] == ["log_scale"]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    # Wrong pairs: a smaller scale is better, so the clamped value must be free to fall.
    images, texts, groups, captions = embeddings(each=1)
    scales = []
    for _ in range(3):
        model.settle()
        loss, numbers = model(images, texts.flip(0), groups, captions, NOW)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scales.append(numbers["scale"])
    assert scales[0] == pytest.approx(50)
    assert scales[0] > scales[1] > scales[2]


def test_adaptive_moves_in_training_only_and_is_saved() -> None:
    model = objective(temperature={"policy": "adaptive", "scale": 10.0, "target_entropy": 0.01})
    batch = embeddings()
    before = model(*batch, NOW)[1]
    after = model(*batch, NOW)[1]
    assert before["scale"] == pytest.approx(10)
    rule = 10 * math.exp(0.05 * (before["entropy"] - 0.01))
    assert after["scale"] == pytest.approx(rule)
    assert not list(model.parameters())
    assert "log_scale" in model.state_dict()
    model.eval()
    still = [model(*batch, NOW)[1]["scale"] for _ in range(2)]
    assert still[0] == still[1]


def test_adaptive_reaches_the_entropy_it_wants() -> None:
    settings = {"policy": "adaptive", "scale": 3.0, "target_entropy": 0.4, "rate": 0.5}
    model = objective(temperature=settings)
    for _ in range(60):
        numbers = model(*embeddings(), 0.0)[1]
    assert numbers["entropy"] == pytest.approx(0.4, abs=0.01)


def test_entropy_share_is_1_for_ignorance_and_0_for_certainty() -> None:
    assert entropy_share(torch.zeros(3, 7)).item() == pytest.approx(1)
    assert entropy_share(100 * torch.eye(5)).item() == pytest.approx(0, abs=1e-6)


# -- the numbers, and precision -----------------------------------------------------------------


def test_logged_numbers() -> None:
    images, texts, groups, captions = embeddings()
    _, numbers = objective()(images, texts, groups, captions, NOW)
    similarity = F.normalize(images, dim=1) @ F.normalize(texts, dim=1).T
    same = groups[:, None] == captions
    assert numbers.keys() == {"loss", "scale", "positive", "negative", "entropy"}
    assert numbers["positive"] == pytest.approx(similarity[same].mean().item())
    assert numbers["negative"] == pytest.approx(similarity[~same].mean().item())


def test_autocast_does_not_reach_the_similarities() -> None:
    batch = embeddings()
    expected, _ = objective()(*batch, NOW)
    with torch.autocast("cpu", torch.bfloat16):
        inside, _ = objective()(*batch, NOW)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, expected)
