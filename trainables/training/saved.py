"""What a run saves beside its adapter: the step, the optimizer's state, the rows of metrics.

Flows in: a checkpoint's files. Flows out: the state that the loop goes on from, or why it cannot.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from trainables.config import TrainConfig, to_json
from trainables.errors import CheckpointError
from trainables.files import read_json, understood, write_bytes


def read_state(path: Path, total: int) -> tuple[int, list[dict[str, float]], dict[str, float]]:
    """The step, the rows of the finished epochs, and the sums of the current one, of a run of
    `total` steps. To be called inside `understood`, which makes a sentence of what it raises."""
    state = read_json(path)
    step, rows, sums = state["step"], state["rows"], state["sums"]
    numbers = [*sums.values(), *(one for row in rows for one in row.values())]
    if not all(type(one) in (int, float) for one in numbers):
        raise TypeError("a value is no number")
    if [row["epoch"] for row in rows] != [*range(1, 1 + len(rows))]:
        raise ValueError("its rows are not those of the first epochs")
    if type(step) is not int or not 0 <= step <= total:
        raise ValueError(f"`step` is {step!r:.20} of {total}")
    return step, rows, sums


def check_same(folder: Path, stored: TrainConfig, own: TrainConfig) -> None:
    """Raise `CheckpointError` unless the run in `folder` has the configuration of this one."""
    then, now = to_json(stored), to_json(own)
    if odd := sorted(k for k, v in now.items() if then.get(k) != v):
        raise CheckpointError(f"`{folder}` holds another run: {', '.join(odd)} differ.")


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, trained: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:
    """The optimizer's state as `kind/parameter`, such as `exp_avg/context`."""
    return {
        f"{kind}/{name}": value.detach().cpu().contiguous()
        for name, parameter in trained.items()
        for kind, value in optimizer.state[parameter].items()
    }


def read_optimizer(
    path: Path, optimizer: torch.optim.Optimizer, trained: Mapping[str, nn.Parameter]
) -> None:
    """Put the tensors of `optimizer_tensors` back in their places."""
    with understood(path):
        try:
            stored = load_file(path)
        except (SafetensorError, OSError) as error:
            raise ValueError(error) from None
        for key, value in stored.items():
            kind, _, name = key.partition("/")
            parameter = trained[name]
            if value.shape not in (parameter.shape, ()) or not value.isfinite().all():
                raise ValueError(f"`{key}` of shape {tuple(value.shape)}, or not finite")
            optimizer.state[parameter][kind] = value.to(parameter.device)


def write_metrics(folder: Path, rows: Sequence[Mapping[str, float]], finished: bool) -> None:
    """The rows as JSON lines and as CSV, rewritten whole: a kill never leaves half a line. The
    files need not be durable before the run ends, as its checkpoint has the same rows."""
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    write_bytes(folder / "metrics.jsonl", lines.encode(), durable=finished)
    table = io.StringIO()
    writer = csv.DictWriter(table, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(folder / "metrics.csv", table.getvalue().encode(), durable=finished)
