"""Names of other packages that are not promised to stay: all of them, each with what it must do.

Where one of these fails after an update, the place that uses the name must be looked at.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from optuna.trial import TrialState
from ray.tune.schedulers.pb2 import _select_config
from ray.tune.utils.util import flatten_dict

from pipelines.tune.schedulers.pbt import _seeded
from pipelines.tune.study.study import batch, open_study, storage_of, trial_id
from tests.repository.test_architecture import imports, sources
from trainables.hardware import has_int8
from trainables.trials.jobs import members
from trainables.trials.vmap_rules import is_batchedtensor

# Documented in spite of its name.
PUBLIC = {"_exit", "_asdict"}


def knows_what_vmap_batches(_: Path) -> None:
    """`vmap_rules`: the rules are for what stands for all runs."""
    found = []

    def member(one: torch.Tensor) -> torch.Tensor:
        found.extend([is_batchedtensor(one), is_batchedtensor(shared), is_batchedtensor(one @ one)])
        return one

    shared = torch.eye(2)
    torch.vmap(member)(torch.ones(3, 2, 2))
    assert found == [True, False, True]


def is_the_step_of_adamw(_: Path) -> None:
    """`fused`: by its own lists, with a rate in a tensor, it does what the optimizer does."""
    ours, theirs = (torch.nn.Parameter(torch.arange(6.0).view(2, 3)) for _ in range(2))
    optimizer = torch.optim.AdamW([theirs], lr=0.1, weight_decay=0.3, fused=True)
    moments, step = [torch.zeros_like(ours) for _ in range(2)], torch.zeros(())
    for n in range(2):
        theirs.grad = torch.full_like(theirs, n + 0.5)
        optimizer.step()
        step += 1
        numbers = {"lr": torch.tensor(0.1), "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
        flags = {"amsgrad": False, "maximize": False, "weight_decay": 0.3}
        torch._fused_adamw_(
            [ours], [theirs.grad], [moments[0]], [moments[1]], [], [step], **numbers, **flags
        )
    assert torch.equal(ours, theirs)


def adds_to_each(_: Path) -> None:
    """`fused`: the steps of all parameters are counted at once, in place."""
    steps = [torch.zeros(2), torch.ones(2)]
    torch._foreach_add_(steps, 1)
    assert [step.tolist() for step in steps] == [[1, 1], [2, 2]]


def is_what_a_study_is_kept_in(folder: Path) -> None:
    """`study`: the storage that we gave a study is the one that it writes to."""
    study, journal = open_study(folder, retains=True), folder / "journal.log"
    before = journal.read_bytes()
    with batch(study):
        trial = study.ask()
        own = trial_id(study, trial.number)
        storage_of(study).set_trial_intermediate_value(own, 1, 0.5)
        assert journal.read_bytes() == before
    lines = journal.read_bytes().removeprefix(before).splitlines()
    assert len([json.loads(line) for line in lines]) > 1
    (found,) = open_study(folder).trials
    assert (found.state, found.intermediate_values) == (TrialState.RUNNING, {1: 0.5})


def chooses_what_gained_most(_: Path) -> None:
    """`pbt`: of a line of gains, time and what was before aside, the model finds the end."""
    at = np.linspace(0, 1, 9)
    known = np.stack([np.full(9, 2.0), np.full(9, 0.1), at], 1)  # (gains, 2 + fields)
    with _seeded(1):
        found = _select_config(known, at**2, None, known[0, :2], {"a": (0.0, 1.0)}, num_f=2)
    assert found.shape == (1,)
    assert 0.8 < found[0] <= 1.0


def multiplies_int8(_: Path) -> None:
    """`codes`: sums of products of int8, exact in int32, also where it is told to put them."""
    rows = torch.full((16, 24), 127, dtype=torch.int8)
    rows[::2, 3:] = -127
    columns = rows[1:9].T.contiguous()
    out = torch.empty(16, 8, dtype=torch.int32)
    torch._int_mm(rows, columns, out=out)
    right = torch.equal(out.long(), rows.long() @ columns.long())
    assert right or not has_int8()  # older CPUs: `fits` sees that


NAMES: dict[str, Callable[[Path], None]] = {
    "torch._C._functorch.is_batchedtensor": knows_what_vmap_batches,
    "_fused_adamw_": is_the_step_of_adamw,
    "_foreach_add_": adds_to_each,
    "ray.tune.schedulers.pb2._select_config": chooses_what_gained_most,
    "_int_mm": multiplies_int8,
    "_storage": is_what_a_study_is_kept_in,
}


@pytest.mark.parametrize("name", NAMES)
def test_a_private_name_does_what_it_did(name: str, tmp_path: Path) -> None:
    NAMES[name](tmp_path)


def defined(tree: ast.Module) -> Iterator[str]:
    """The names that a module of ours gives to anything."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Attribute | ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.attr if isinstance(node, ast.Attribute) else node.id


def test_no_other_private_name_is_used() -> None:
    trees = sources().values()
    ours = {name for tree in trees for name in defined(tree)}
    attributes = {
        node.attr for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)
    }
    private = {name for name in attributes if name[0] == "_" and name[:2] != "__"} - ours - PUBLIC
    modules = {
        name
        for tree in trees
        for name in imports(tree)
        if any(part[0] == "_" and part[:2] != "__" for part in name.split("."))
        and name.split(".")[0] not in ("pipelines", "trainables", "search_spaces", "benchmarks")
    }
    assert private | modules == NAMES.keys()


def test_what_a_scheduler_notes_of_one_of_many_reaches_the_searcher() -> None:
    """Tune flattens a result for both of them; the results of single trials stay what they were."""
    result: dict[str, Any] = {"number": 1, "members": [{"number": 1}, {"number": 2}], "done": False}
    told = flatten_dict(result)
    members(told)[2]["pruned"] = True
    assert result["members"][1] == {"number": 2, "pruned": True}
