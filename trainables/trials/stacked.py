"""Several runs of one shape, trained in one process and one stream of batches.

Flows in: runs at one step whose configs differ in numbers only. Flows out: the rows that each of
them would have ended its epoch with alone. The parts that all runs share (the batch, a frozen
tower's states) are computed once; the rest is one batched operation for all.

A member stays an ordinary `Run`: its parameters, its gradients and its optimizer's state are views
of stacked tensors (N, ...). So saving, measuring and resuming need not know of the stack, and a
member can go on alone at any time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from trainables.config import TrainConfig, Value, flatten
from trainables.data.batches import Batch
from trainables.data.transfer import Numbers, send
from trainables.errors import CliptuneError, ConfigError
from trainables.hardware import autocast
from trainables.training.loop import Diverged, Run, never
from trainables.training.selection import Row
from trainables.trials.cuda_graphs import CudaGraphs, Record, recorder
from trainables.trials.vmap_rules import Together

# What runs of one shape may differ in: numbers that change no shape and no branch.
FREE = {
    *("optim.lr", "optim.weight_decay", "optim.schedule", "optim.warmup", "optim.clip_norm"),
    *("temperature.scale", "temperature.final", "temperature.low", "temperature.high"),
    *("temperature.rate", "temperature.target_entropy", "loss.label_smoothing", "loss.hardness"),
    *("adapter.init", "adapter.init_std", "patience", "changes"),
}
# Attention that `vmap` knows how to batch; the CPU's fused kernel it does not.
GPU_KERNELS = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)


def shape_of(config: TrainConfig) -> dict[str, Value]:
    """The fields in which runs that are trained together must agree."""
    return {name: value for name, value in flatten(config).items() if name not in FREE}


class StackedRuns:
    """N runs, advanced together. A run that diverges or has finished leaves; the others go on."""

    def __init__(
        self, runs: Sequence[Run], recorder: Callable[[torch.device], Record | None] = recorder
    ) -> None:
        """`recorder`: gives the device's way to record steps, or None."""
        self.runs, self.recorder = list(runs), recorder
        first = self.runs[0]
        if first.config.optim.kind != "adamw":
            raise ConfigError(
                f"runs train together with `optim.kind` adamw, got {first.config.optim.kind}."
            )
        for run in self.runs[1:]:
            if shape_of(run.config) != shape_of(first.config) or run.step != first.step:
                raise ConfigError(
                    f"runs that train together must have one shape and one step, got "
                    f"`{first.folder}` at step {first.step} and `{run.folder}` at {run.step}."
                )
        self._stack()

    def advance(self, should_stop: Callable[[], bool] = never) -> list[Row | CliptuneError]:
        """`Run.advance` for all: the row of each run, or the error that it failed with, in the
        order of `runs` as it was. `runs` then holds those that can go on."""
        asked = list(self.runs)
        results: dict[int, Row | CliptuneError] = {}
        started = time.monotonic()
        changed = [run.begin_epoch() for run in self.runs]
        if any(changed):
            self._stack()
        end = self.runs[0].epoch_end
        while self.runs and self.runs[0].step < end:
            if not should_stop():
                self._note(results, self._step())
                continue
            self._note(results)
            stopped = [run.interrupted() for run in self.runs]
            if stopped:
                raise stopped[0]
        self._note(results)
        share = (time.monotonic() - started) / len(asked)
        for run in self.runs:
            try:
                results[id(run)] = run.end_epoch(share)
            except Diverged as error:
                results[id(run)] = error
        failed = [run for run in self.runs if isinstance(results[id(run)], Diverged)]
        self._keep([run for run in self.runs if run not in failed and not run.finished])
        return [results[id(run)] for run in asked]

    def _note(
        self, results: dict[int, Row | CliptuneError], numbers: Numbers | None = None
    ) -> None:
        """Check the numbers of the step before; `numbers` are those of the next. Runs that diverged
        leave."""
        for n, run in enumerate(self.runs):
            try:
                run.settle()
            except Diverged as error:
                results[id(run)] = error
            else:
                if numbers is not None:
                    run.count(numbers, n)
        self._keep([run for run in self.runs if id(run) not in results])

    def leave(self, gone: Sequence[Run]) -> None:
        """Go on without some of the runs."""
        self._keep([run for run in self.runs if run not in gone])

    def _keep(self, runs: list[Run]) -> None:
        if len(runs) < len(self.runs):
            self.runs = runs
            if self.graphs.refused:
                self.recorder = lambda _: None
            self._stack()

    # -- the stacks -------------------------------------------------------------------------

    def _stack(self) -> None:
        """Move the runs' parameters, gradients and optimizer state into stacks, of which the runs
        keep views."""
        if not self.runs:
            return
        device = self.runs[0].adapter.backbone.device
        self.parameters: dict[str, Tensor] = {}
        self.grads: dict[str, Tensor] = {}
        self.steps: list[Tensor] = []
        for name in self.runs[0].trained:
            own = [run.trained[name] for run in self.runs]
            stack = torch.stack([parameter.detach() for parameter in own])
            moments = {
                key: torch.stack([self._moment(run, name, key) for run in self.runs])
                for key in ("exp_avg", "exp_avg_sq", "step")
            }
            self.steps.append(moments["step"])  # (N,)
            self.parameters[name] = stack.requires_grad_()
            self.grads[name] = torch.zeros_like(stack)
            for n, (run, parameter) in enumerate(zip(self.runs, own, strict=True)):
                parameter.data = stack.data[n]
                parameter.grad = self.grads[name][n]
                state = run.optimizer.state[parameter]
                state |= {key: moment[n] for key, moment in moments.items()}
        self.buffers: dict[str, Tensor] = {}
        for name, _ in self._differing():
            stack = torch.stack([run.adapter.objective.get_buffer(name) for run in self.runs])
            self.buffers[f"objective.{name}"] = stack
            for n, run in enumerate(self.runs):
                setattr(run.adapter.objective, name, stack[n])
        norms = [run.config.optim.clip_norm or math.inf for run in self.runs]
        self.clip = torch.tensor(norms, device=device)
        self.lr = torch.zeros(len(self.runs), device=device)  # of the next step
        self.updates = [
            _adamw(run.optimizer, group, self.lr[n])
            for n, run in enumerate(self.runs)
            for group in run.optimizer.param_groups
            if group["params"]
        ]
        # A recording holds the addresses of these stacks.
        self.graphs = CudaGraphs(self._update, self.runs[0].adapter.backbone, self.recorder(device))

    @staticmethod
    def _moment(run: Run, name: str, key: str) -> Tensor:
        parameter = run.trained[name]
        found: Tensor | None = run.optimizer.state[parameter].get(key)
        if found is None:
            like = parameter.detach()
            return like.new_zeros(()) if key == "step" else torch.zeros_like(like)
        return found

    def _differing(self) -> list[tuple[str, Tensor]]:
        """The objective's numbers; its branches are the same for all runs."""
        named = self.runs[0].adapter.objective.named_buffers()
        return [(name, buffer) for name, buffer in named if buffer.is_floating_point()]

    # -- one step ---------------------------------------------------------------------------

    def _step(self) -> Numbers:
        """A step of every run; run n's numbers are row n."""
        batch = self.runs[0].next_batch()
        self._calibrate(batch)
        self.lr.copy_(send(torch.tensor([run.lr(run.step) for run in self.runs]), self.lr.device))
        values = self.graphs(batch)  # (N, numbers)
        return Numbers(self.names, values)

    def _update(self, batch: Batch) -> Tensor:
        """All of a step that is computed on the device: (N, numbers)."""
        for run in self.runs:
            run.adapter.objective.settle()
        losses, numbers = self._losses(batch)
        found = torch.autograd.grad(
            losses.sum(), list(self.parameters.values()), allow_unused=True, materialize_grads=True
        )
        with torch.no_grad():
            self._clip(found)
            torch._foreach_add_(self.steps, 1)
            for update in self.updates:
                update()
        self.names = list(numbers)
        return torch.stack(list(numbers.values()), 1)

    def _losses(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Each run's loss and numbers: (N,) each."""
        template = self.runs[0].adapter

        def member(own: Mapping[str, Tensor]) -> Any:
            return functional_call(template, dict(own), (batch,))

        # A frozen backbone is unbatched in here: what only it and the batch decide is done once.
        # `same`: dropout draws for each run what it would have drawn alone.
        device = template.backbone.device
        kernels = [SDPBackend.MATH] if device.type == "cpu" else list(GPU_KERNELS)
        with autocast(template.train_config.precision, device), sdpa_kernel(kernels), Together():
            found: tuple[Tensor, dict[str, Tensor]] = torch.vmap(member, randomness="same")(
                self.parameters | self.buffers
            )
        return found

    def _calibrate(self, batch: Batch) -> None:
        """Set what a run's first batch decides (the sigmoid loss's bias), by its own forward."""
        for run in self.runs:
            objective, device = run.adapter.objective, run.adapter.backbone.device
            if objective.calibrated:
                continue
            cards = [device] if device.type == "cuda" else []
            with (
                torch.random.fork_rng(cards),
                torch.no_grad(),
                autocast(run.config.precision, device),
            ):
                objective.eval()  # an adaptive temperature stays where it is
                if not objective.bias_is_set:
                    run.adapter(batch)
                objective.train()
            objective.calibrated = True

    def _clip(self, found: Sequence[Tensor]) -> None:
        """`clip_grad_norm_` of each run's own gradients, into its `grad`."""
        for grad, new in zip(self.grads.values(), found, strict=True):
            grad.copy_(new)
        flat = [grad.view(len(self.runs), -1) for grad in self.grads.values()]
        norms = torch.stack([torch.linalg.vector_norm(grad, dim=1) for grad in flat])
        factor = self.clip / (torch.linalg.vector_norm(norms, dim=0) + 1e-6)  # (N,)
        for grad in flat:
            grad.mul_(factor.clamp(max=1)[:, None])


def _adamw(
    optimizer: torch.optim.Optimizer, group: dict[str, Any], lr: Tensor
) -> Callable[[], object]:
    """The work of `optimizer.step()` for one of its groups, except for counting the step, without
    the look-ups of each call: for a small head they take longer than the arithmetic."""
    states = [optimizer.state[parameter] for parameter in group["params"]]
    return partial(
        torch._fused_adamw_,
        group["params"],
        [parameter.grad for parameter in group["params"]],
        [state["exp_avg"] for state in states],
        [state["exp_avg_sq"] for state in states],
        [],
        [state["step"] for state in states],
        amsgrad=False,
        lr=lr,  # a tensor: it changes with the step, and a recording reads it from memory
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=False,
    )
