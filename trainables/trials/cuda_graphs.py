"""A training step recorded once for each shape of batch, and replayed.

Flows in: a function of a batch, and the device's recorder (a GPU's; None records nothing). Flows
out: what the function returns.

On a GPU a small step takes longer to launch than to compute. A CUDA graph starts all of it as one,
on the very addresses that it was recorded with. So a recording owns the batch that it was made of,
and later batches of that shape are copied into it. Two steps may differ in the contents of tensors
alone: numbers that change with the step are tensors, and the text tower's plans are made before.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, fields, is_dataclass

import torch
from torch import Tensor

from trainables.data.batches import Batch
from trainables.models.backbone import Backbone
from trainables.models.text_plan import Form, plan

MOST = 32  # recordings; what has another shape runs as it is
Record = Callable[[Callable[[], Tensor]], Callable[[], Tensor]]  # work to its replay


@dataclass(frozen=True)
class Recording:
    """A recorded step: `replay` computes on the contents of `inputs`."""

    inputs: list[Tensor]
    replay: Callable[[], Tensor]


class CudaGraphs:
    """`work`, with everything that batches of a shape have in common done once."""

    def __init__(
        self, work: Callable[[Batch], Tensor], backbone: Backbone, record: Record | None
    ) -> None:
        self.work, self.backbone, self.record = work, backbone, record
        self.forms: list[Form] = []  # of the plans that `work` asks for
        self.refused = False
        self.seen: set[Hashable] = set()
        self.recordings: dict[Hashable, Recording] = {}

    def __call__(self, batch: Batch) -> Tensor:
        """`work` of a batch. The first batch of a shape runs as it is, which also sets up what must
        not be recorded; the run of the second one is recorded."""
        if self.record is None:
            return self.work(batch)
        inputs = self._inputs(batch)
        shape = shape_of(inputs)
        if shape not in self.recordings and shape in self.seen and len(self.recordings) < MOST:
            try:
                self.recordings[shape] = Recording(inputs, self.record(lambda: self.work(batch)))
            except RuntimeError as error:
                logging.getLogger(__name__).warning("steps are not recorded: %s", error)
                self.refused, self.record = True, None
                self.recordings.clear()
                return self.work(batch)
        if shape in self.recordings:
            recording = self.recordings[shape]
            for own, new in zip(recording.inputs, inputs, strict=True):
                if own is not new:
                    own.copy_(new)
            return recording.replay()
        result = self.work(batch)
        self.forms = [form for form in batch.tokens.plans if form.grad]
        self.seen.add(shape_of(self._inputs(batch)))
        return result

    def _inputs(self, batch: Batch) -> list[Tensor]:
        """All tensors of a batch that `work` reads."""
        plans = [plan(self.backbone, batch.tokens, form) for form in self.forms]
        given = (batch.image_embeds, batch.hidden, batch.text_embeds, batch.progress)
        return list(tensors((*given, batch.image_groups, batch.caption_groups, *plans)))


def shape_of(inputs: list[Tensor]) -> Hashable:
    return tuple((tensor.shape, tensor.dtype) for tensor in inputs)


def tensors(value: object) -> Iterator[Tensor]:
    """The tensors in a nest of sequences and dataclasses."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from tensors(one)
    elif is_dataclass(value):
        for field in fields(value):
            yield from tensors(getattr(value, field.name))


def recorder(device: torch.device) -> Record | None:
    """A recorder of CUDA graphs that share one pool of memory, as they never run side by side. A
    pool ends with the last of its graphs, so each set of them needs a recorder of its own."""
    if device.type != "cuda":
        return None
    pool = torch.cuda.graph_pool_handle()

    def record(work: Callable[[], Tensor]) -> Callable[[], Tensor]:
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            # Meanwhile another thread may copy the next batch (`ahead.py`).
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                result = work()
        except RuntimeError:
            torch.cuda.set_stream(stream)  # it may have stayed on the one that was recorded
            raise

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay

    return record
