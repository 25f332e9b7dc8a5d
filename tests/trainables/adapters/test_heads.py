"""Heads in closed form against the plain way: a loop, a solver, one fit for each setting."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.contract import CLASSES, examples, make
from trainables.adapters import gda, kernel_ridge, linear_probe
from trainables.adapters.crossfit import PARTS, choose, left_out
from trainables.adapters.registry import build, make_config
from trainables.config import Value
from trainables.errors import ConfigError
from trainables.features.split import SplitFeatures
from trainables.models.backbone import Backbone
from trainables.training.predict import score

CHOOSING: dict[str, dict[str, Value]] = {
    "kernel_ridge": {},
    "gda": {},
    "linear_probe": {"adapter.solver": "lbfgs", "adapter.init": "text"},
    "tip_adapter": {},
}


def part(backbone: Backbone, rows: range, noise: int = 0) -> SplitFeatures:
    """Images of the fixed ones, by label; `noise` seeds what makes others of them."""
    data = examples(backbone)
    found = data.take({data.ids[n]: n % 5 for n in rows}, CLASSES)
    if noise:
        random = torch.randn(
            found.image_embeds.shape, generator=torch.Generator().manual_seed(noise)
        )
        found.image_embeds.add_(random * found.image_embeds.std())
    return found


def head(name: str, backbone: Backbone, train: SplitFeatures, **values: Value) -> Any:
    return build(make_config(name, {**CHOOSING.get(name, {}), **values}), backbone, train)


def plain(adapter: Any, data: SplitFeatures) -> tuple[Tensor, Tensor, Tensor]:
    """Unit features (N, e), texts (C, e) and one-hot labels (N, C), in float64."""
    assert data.labels is not None
    texts = CLASSES.text_embeds(adapter.backbone).double()
    return F.normalize(data.image_embeds.double(), dim=1), texts, torch.eye(5).double()[data.labels]


# -- choosing --------------------------------------------------------------------------------------


def grid() -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(23) % 4
    return torch.randn(30, 23, 4, generator=random), labels


@pytest.mark.parametrize("accurate", [False, True])
def test_the_choice_is_a_double_loops_and_an_image_has_no_say_in_its_own(accurate: bool) -> None:
    logits, labels = grid()
    ranked = sorted(range(23), key=lambda n: int(labels[n]))
    part_of = {n: place % PARTS for place, n in enumerate(ranked)}

    def best(images: list[int]) -> int:
        def worth(setting: int) -> tuple[float, float]:
            own, truth = logits[setting, images], labels[images]
            right = float((own.argmax(1) == truth).sum()) if accurate else 0.0
            return right, -float(F.cross_entropy(own.double(), truth))

        return max(range(len(logits)), key=worth)

    number, crossed = choose(logits.split(7), labels, accurate)
    assert number == best(list(range(23)))
    for image in range(23):
        others = [n for n in range(23) if part_of[n] != part_of[image]]
        assert torch.equal(crossed[image], logits[best(others), image])


def test_what_is_left_out_is_not_fitted() -> None:
    _, labels = grid()
    images = torch.arange(23.0)[:, None]

    def fit(known: Tensor, classes: Tensor, asked: Tensor) -> Tensor:
        assert not set(known[:, 0].tolist()) & set(asked[:, 0].tolist())
        assert torch.equal(labels[known[:, 0].long()], classes)
        return asked.expand(2, -1, 4)

    found = left_out(fit, images, labels)
    assert found is not None
    assert torch.equal(found, images.expand(2, -1, 4))
    assert left_out(fit, images[:4], labels[:4]) is None  # of a class nothing would be left


@pytest.mark.parametrize("name", CHOOSING)
def test_val_is_measured_by_heads_that_its_other_images_chose(
    name: str, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear_probe, "PENALTIES", (1.0, 0.03))
    val = part(backbone, range(16), noise=2)
    assert val.labels is not None
    adapter = head(name, backbone, part(backbone, range(16), noise=1))
    similarity = adapter.end_epoch(1, val)
    ranked = sorted(range(16), key=lambda n: int(val.labels[n]))  # type: ignore[index]
    expected = torch.empty(16, 5)
    for fifth in range(PARTS):
        own = [n for place, n in enumerate(ranked) if place % PARTS == fifth]
        others = {val.ids[n]: int(val.labels[n]) for n in range(16) if n not in own}
        adapter.end_epoch(1, val.take(others, CLASSES))
        expected[own] = score(adapter, val, CLASSES)[own]
    rough = 1e-4 if name == "linear_probe" else 1e-5  # lambda is chosen before it is fitted exactly
    torch.testing.assert_close(similarity, expected, rtol=1e-4, atol=rough)


# -- each by its formula ---------------------------------------------------------------------------


def ridge(adapter: Any, train: SplitFeatures, asked: Tensor) -> Tensor:
    """Scores of kernel ridge with the numbers it has, by solving."""
    beta, penalty, share, _ = adapter.numbers.double()
    images, texts, labels = plain(adapter, train)

    def kernel(one: Tensor, other: Tensor) -> Tensor:
        return (-beta * (one[:, None] - other[None]).square().sum(2)).exp()

    def known(one: Tensor) -> Tensor:
        return (share * adapter.tau * one @ texts.T).softmax(1)

    ridged = kernel(images, images) + penalty * torch.eye(len(images)).double()
    return known(asked) + kernel(asked, images) @ torch.linalg.solve(ridged, labels - known(images))


@pytest.mark.parametrize("chosen_on_val", [True, False])
def test_kernel_ridge_is_the_likeliest_solution(chosen_on_val: bool, backbone: Backbone) -> None:
    train, val = part(backbone, range(16), noise=1), part(backbone, range(16), noise=2)
    adapter = head("kernel_ridge", backbone, train)
    adapter.end_epoch(1, val if chosen_on_val else None)
    asked, _, truth = plain(adapter, val)
    scale, tau = float(adapter.numbers[3]), adapter.tau
    expected = scale / tau * ridge(adapter, train, asked)
    torch.testing.assert_close(
        score(adapter, val, CLASSES).double(), expected, rtol=1e-4, atol=1e-5
    )
    chosen = adapter.numbers.clone()

    def likelihood() -> float:
        if chosen_on_val:
            logits = adapter.numbers[3] * ridge(adapter, train, asked)
            return float((logits.log_softmax(1) * truth).sum())
        total = 0.0
        for n in range(16):  # each by all others
            rest = train.take({train.ids[m]: m % 5 for m in range(16) if m != n}, CLASSES)
            logits = adapter.numbers[3] * ridge(adapter, rest, plain(adapter, train)[0][n : n + 1])
            total += float((logits.log_softmax(1) * plain(adapter, train)[2][n]).sum())
        return total

    best = likelihood()
    every = itertools.product(
        kernel_ridge.BETAS,
        kernel_ridge.PENALTIES[::2],
        kernel_ridge.SHARES,
        kernel_ridge.SCALES[::3],
    )
    for numbers in itertools.islice(every, 0, None, 1 if chosen_on_val else 7):
        adapter.numbers.copy_(torch.tensor(numbers))
        assert likelihood() <= best + 1e-4
    assert len(set(chosen.tolist())) > 1


@pytest.mark.parametrize("chosen_on_val", [True, False])
def test_kernel_ridge_of_many_images_is_chosen_by_landmarks_and_solved_exactly(
    chosen_on_val: bool, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, val = part(backbone, range(16), noise=1), part(backbone, range(16), noise=2)
    exact = head("kernel_ridge", backbone, train)
    exact.end_epoch(1, val if chosen_on_val else None)
    monkeypatch.setattr(kernel_ridge, "LANDMARKS", 12)
    eigh, sizes = torch.linalg.eigh, []

    def decompose(matrix: Tensor) -> Any:
        sizes.append(len(matrix))
        return eigh(matrix)

    monkeypatch.setattr(torch.linalg, "eigh", decompose)
    adapter = head("kernel_ridge", backbone, train)
    adapter.end_epoch(1, val if chosen_on_val else None)
    assert set(sizes) == {12}
    asked, _, truth = plain(adapter, val)
    expected = adapter.numbers[3] / adapter.tau * ridge(adapter, train, asked)
    torch.testing.assert_close(
        score(adapter, val, CLASSES).double(), expected, rtol=1e-4, atol=1e-5
    )
    near, best = (
        float(((own.numbers[3] * ridge(own, train, asked)).log_softmax(1) * truth).sum())
        for own in (adapter, exact)
    )
    assert near > 1.2 * best  # both negative


def test_gda_is_the_gaussians_of_the_paper(backbone: Backbone) -> None:
    train, val = part(backbone, range(16), noise=1), part(backbone, range(16), noise=2)
    adapter = head("gda", backbone, train)
    adapter.end_epoch(1, val)
    images, texts, labels = plain(adapter, train)
    means = torch.stack([images[labels[:, c] == 1].mean(0) for c in range(5)])
    covariance = (images - labels @ means).T.cov()
    shrunk = 15 * covariance + covariance.trace() * torch.eye(16).double()
    weight = 16 * means @ torch.linalg.inv(shrunk)
    bias = -0.5 * (weight * means).sum(1) - math.log(5)
    asked, _, truth = plain(adapter, val)
    every = {
        alpha: adapter.tau * asked @ texts.T + alpha * (asked @ weight.T + bias)
        for alpha in gda.ALPHAS
    }
    best = max(every, key=lambda alpha: float((every[alpha].log_softmax(1) * truth).sum()))
    assert float(adapter.alpha) == pytest.approx(best)
    found = adapter.tau * score(adapter, val, CLASSES).double()
    torch.testing.assert_close(found, every[best], rtol=1e-4, atol=1e-4)


def test_gda_of_one_image_a_class_says_what_it_does(backbone: Backbone) -> None:
    adapter = head("gda", backbone, part(backbone, range(5)))
    assert "one image of each class" in adapter.notes[0]
    assert adapter.weight.isfinite().all()
    adapter.end_epoch(1, None)
    assert float(adapter.alpha) == adapter.config.alpha
    assert adapter.without_val == "alpha stays 1."
    assert head("gda", backbone, part(backbone, range(16))).notes == []


@pytest.mark.parametrize("init", ["zero", "text"])
def test_lbfgs_ends_at_the_likeliest_minimum(
    init: str, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear_probe, "PENALTIES", linear_probe.PENALTIES[1:8:2])
    train, val = part(backbone, range(16), noise=1), part(backbone, range(16), noise=2)
    adapter = head("linear_probe", backbone, train, **{"adapter.init": init})
    adapter.end_epoch(1, val)
    images, texts, labels = plain(adapter, train)
    centre = texts if init == "text" else torch.zeros_like(texts)
    asked, _, truth = plain(adapter, val)
    found = {}
    for penalty in linear_probe.PENALTIES:
        weight, bias = (x.clone().requires_grad_() for x in (centre, torch.zeros(5).double()))
        solver = torch.optim.LBFGS([weight, bias], 1, 2000, line_search_fn="strong_wolfe")

        def loss(penalty: float = penalty, w: Tensor = weight, b: Tensor = bias) -> Tensor:
            logits = adapter.tau * (images @ w.T + b)
            off = -(logits.log_softmax(1) * labels).sum(1).mean()
            return off + penalty / 2 * (w - centre).square().sum()

        def closure() -> Tensor:
            solver.zero_grad()  # noqa: B023
            value = loss()
            value.backward()
            return value

        solver.step(closure)
        logits = adapter.tau * (asked @ weight.T + bias)
        found[penalty] = float((logits.log_softmax(1) * truth).sum().detach())
    own = adapter.tau * score(adapter, val, CLASSES).double()
    assert float((own.log_softmax(1) * truth).sum()) == pytest.approx(max(found.values()), abs=1e-3)
    assert not dict(adapter.named_parameters())  # nothing is left for the loop to train


def test_lp_plus_is_gradient_descent_at_its_own_rates(backbone: Backbone) -> None:
    train = part(backbone, range(16), noise=1)
    adapter = head("lp_plus", backbone, train, **{"adapter.steps": 25})
    adapter.end_epoch(1, None)
    images, texts, labels = plain(adapter, train)
    said = images @ texts.T
    linear = torch.nn.Linear(16, 5).double()
    with torch.no_grad():
        linear.weight.copy_(torch.stack([images[labels[:, c] == 1].mean(0) for c in range(5)]))
        linear.bias.zero_()
    own = torch.stack([said[labels[:, c] == 1, c].mean() for c in range(5)])
    alpha = (250 * own.mean() * torch.ones(5)).double().requires_grad_()
    rate = 4 * 16 / torch.linalg.matrix_norm(images, 2) ** 2
    solver = torch.optim.SGD(linear.parameters(), float(rate), momentum=0.9)
    for step in range(1, 26):
        alpha.grad = None
        solver.zero_grad()
        F.cross_entropy(linear(images) + alpha * said, labels).backward()
        if step % 10 == 0:
            with torch.no_grad():
                assert alpha.grad is not None
                alpha -= 16 / (4 * said.square().sum(0).max()) * alpha.grad
        solver.step()
    expected = linear(images) + alpha * said
    found = adapter.tau * score(adapter, train, CLASSES).double()
    torch.testing.assert_close(found, expected.detach(), rtol=1e-4, atol=1e-4)


def test_ss_text_is_one_step(backbone: Backbone) -> None:
    train = part(backbone, range(16), noise=1)
    adapter = head("ss_text", backbone, train)
    images, texts, labels = plain(adapter, train)
    rows = []
    for c in range(5):
        of_class = images[labels[:, c] == 1]
        row = texts[c] + len(of_class) / 16 * adapter.tau * of_class.sum(0)
        rows.append(row / row.norm())
    found = score(adapter, train, CLASSES).double()
    torch.testing.assert_close(found, images @ torch.stack(rows).T, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("place", ["embedding", "projection"])
def test_prolip_moves_one_matrix(place: str, backbone: Backbone) -> None:
    train = examples(backbone)
    given = {"adapter.place": place, "adapter.lr": 1e-2, "adapter.steps": 20}
    adapter = head("prolip", backbone, train, **given)
    start = adapter.weight.clone()
    images, texts, _ = plain(adapter, train)
    found = score(adapter, train, CLASSES).double()
    torch.testing.assert_close(found, images @ texts.T, rtol=1e-5, atol=1e-6)  # zero-shot
    adapter.end_epoch(1, None)
    assert train.labels is not None
    linear = torch.nn.Linear(*start.T.shape, bias=False)
    with torch.no_grad():
        linear.weight.copy_(start)
    seen = F.normalize(train.image_embeds, dim=1)
    if place == "projection":
        hidden = train.hidden(torch.arange(16), 0, 2)
        seen = backbone.model.vision_model.post_layernorm(hidden[:, 0]).detach()
    solver = torch.optim.Adam(linear.parameters(), 1e-2, eps=1e-4)
    for _ in range(20):
        solver.zero_grad()
        logits = adapter.tau * F.normalize(linear(seen), dim=1) @ CLASSES.text_embeds(backbone).T
        held = 5 / 16 * (linear.weight - start).square().sum()  # 16 images of 5 classes
        (F.cross_entropy(logits, train.labels) + held).backward()
        solver.step()
    torch.testing.assert_close(adapter.weight, linear.weight.detach(), rtol=1e-3, atol=1e-4)
    assert (adapter.weight - start).abs().max() > 0.01


def test_a_tower_without_projection_is_refused(siglip: Backbone) -> None:
    with pytest.raises(ConfigError, match=r'`adapter.place` must be "embedding" with a SigLIP'):
        make("prolip projection", siglip)


# -- what a grid costs -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "module", "counted", "times"),
    [
        ("gda", gda, "gaussians", 2),  # where it starts, and at the end of the epoch
        ("linear_probe", linear_probe, "minimise", 1 + len(linear_probe.PENALTIES)),  # a step each
        ("kernel_ridge", torch.linalg, "eigh", 2 * len(kernel_ridge.BETAS)),  # of few landmarks
        ("kernel_ridge", torch.linalg, "cholesky", 1),
    ],
)
def test_a_whole_grid_and_its_val_are_a_fit_or_one_a_kernel(
    name: str,
    module: Any,
    counted: str,
    times: int,
    backbone: Backbone,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain, calls = getattr(module, counted), []

    def call(*args: Any, **values: Any) -> Any:
        calls.append(1)
        return plain(*args, **values)

    monkeypatch.setattr(module, counted, call)
    adapter = head(name, backbone, part(backbone, range(16), noise=1))
    adapter.end_epoch(1, part(backbone, range(16), noise=2))
    assert len(calls) == times


# -- without val -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in CHOOSING if name != "tip_adapter"])
def test_without_val_the_training_images_choose_unless_classes_have_one(
    name: str, backbone: Backbone
) -> None:
    many = head(name, backbone, part(backbone, range(16), noise=1))
    assert many.end_epoch(1, None) is None
    assert "chosen" in many.without_val
    one = head(name, backbone, part(backbone, range(5), noise=1))
    one.end_epoch(1, None)
    assert "stay" in one.without_val
    assert score(one, part(backbone, range(16)), CLASSES).isfinite().all()
