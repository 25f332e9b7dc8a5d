"""Runs trained together where attention has the rules of a GPU's kernel."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.contract import FUSING
from tests.gpu_attention import gpu_attention, refuse
from tests.trainables.trials.test_stacked import Make, assert_gradients_of_single_runs, bench, make
from trainables.models import text_plan
from trainables.trials import stacked as fused
from trainables.trials.stacked import StackedRuns
from trainables.trials.vmap_rules import Together

__all__ = ["bench", "make"]


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.Size]]:
    """That kernel, and shapes as on a GPU."""
    monkeypatch.setattr(text_plan, "few_shapes", lambda _: True)
    with gpu_attention() as calls:
        yield calls


@pytest.mark.parametrize(
    ("bias", "words"),
    [
        (torch.zeros(1, 3, 4, 16), r"wrong shape \(batch dimension\)"),
        (torch.zeros(2, 1, 4, 16), r"wrong shape \(head dimension\)"),
        (torch.zeros(2, 3, 4, 8), r"wrong shape \(seqlenKV dimension\)"),
        (torch.zeros(2, 3, 4, 18)[..., :16], "not correctly aligned"),
        (torch.zeros(2, 3, 16, 4).mT, "last dimension must be contiguous"),
        (torch.zeros(2, 3, 4, 16, dtype=torch.bfloat16), "invalid dtype"),
    ],
)
def test_the_stand_in_refuses_what_the_kernel_refuses(bias: Tensor, words: str) -> None:
    queries, keys = torch.zeros(2, 3, 4, 8), torch.zeros(2, 3, 16, 8)
    refuse(queries, keys, keys, torch.zeros(2, 1, 4, 16).expand(2, 3, 4, 16))
    with pytest.raises(RuntimeError, match=words):
        refuse(queries, keys, keys, bias)


def test_by_vmaps_own_rule_one_run_trains_and_two_are_refused(
    make: Make, kernel: list[torch.Size], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "Together", contextlib.nullcontext)
    StackedRuns(make("one", "soft_prompt", count=1))._step()
    with pytest.raises(RuntimeError, match=r"attn_bias: wrong shape \(batch dimension\)"):
        StackedRuns(make("two", "soft_prompt", count=2))._step()


@pytest.mark.parametrize("variant", FUSING)
def test_every_adapter_trains_together_through_the_kernel(
    variant: str, make: Make, kernel: list[torch.Size]
) -> None:
    assert_gradients_of_single_runs(variant, make, **{"optim.kind": "adamw"})


@pytest.mark.parametrize("variant", ["soft_prompt deep", "lora both"])
def test_in_bf16_too(variant: str, make: Make, kernel: list[torch.Size], bf16_cpu: None) -> None:
    alone = make("alone", variant, precision="bf16")
    numbers = StackedRuns(make("together", variant, precision="bf16"))._step()
    for n, run in enumerate(alone):
        assert numbers.row(n) == pytest.approx(run._train_step().row(), rel=2e-2, abs=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batched", ["q", "k", "v", "qv", "qkv"])
@pytest.mark.parametrize("keys", [16, 11])
def test_the_rule_gives_what_each_run_gets_alone(
    batched: str, keys: int, dtype: torch.dtype, kernel: list[torch.Size]
) -> None:
    random = torch.Generator().manual_seed(0)
    dims = tuple(0 if name in batched else None for name in "qkv")
    lengths = (5, keys, keys)
    given = [
        torch.randn(*((3,) if dim == 0 else ()), 2, 4, n, 8, generator=random).to(dtype)
        for dim, n in zip(dims, lengths, strict=True)
    ]
    mask = torch.rand(2, 1, 5, keys, generator=random) < 0.5
    mask[..., 0] = True

    def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)

    with Together():
        found = torch.vmap(attend, in_dims=dims)(*given)
    assert kernel == [torch.Size((2, 3 * 4, 5, 8))]
    for n in range(3):
        own = [x[n] if dim == 0 else x for x, dim in zip(given, dims, strict=True)]
        torch.testing.assert_close(found[n], attend(*own))
