"""The next batch, made while a step runs.

Flows in: a function that makes the batch of a step. Flows out: batches on the device, with their
plans. A batch is a function of (config, step), so any thread can make it at any time. A GPU that
waits until captions are chosen, planned and copied computes nothing meanwhile. On a CPU a second
thread would slow the step down by as much as it saves, so there each batch is made in its turn.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from trainables.data.batches import Batch
from trainables.models.backbone import Backbone
from trainables.models.text_plan import Form, plan


class Ahead:
    """Gives the batch of each step; by then another thread is at work on the next.

    That thread starts copies and nothing else on the device. It draws no dropout, enters no
    autocast and runs no tower. An epoch's first step makes things once for the whole epoch, a view
    of the images or the frozen texts; it is made in its turn, since no batch is made ahead over an
    epoch's end.
    """

    def __init__(
        self, make: Callable[[int], Batch], backbone: Backbone, threaded: bool = False
    ) -> None:
        self.make, self.backbone, self.threaded = make, backbone, threaded
        self.thread = ThreadPoolExecutor(1, "batches")
        # A thread's own is the first, where workers of one node see all of their cards. -1: none.
        self.card = torch.cuda.current_device() if backbone.device.type == "cuda" else -1
        self.next: tuple[int, Future[Batch]] | None = None
        self.last: Batch | None = None  # the plans that its step asked for are the next one's too

    def __call__(self, step: int, end: int) -> Batch:
        """The batch of `step`; the next one is begun, where it is before `end`."""
        plans = {} if self.last is None else self.last.tokens.plans
        forms = [form for form in plans if isinstance(form, Form) and form.grad]
        if self.next is not None and self.next[0] == step:
            batch = self.next[1].result()
        else:
            batch = self._planned(step, [])
        begun = self.next is not None and self.next[0] == step + 1
        if self.threaded and step + 1 < end and not begun:
            self.next = step + 1, self.thread.submit(self._planned, step + 1, forms)
        self.last = batch
        return batch

    def _planned(self, step: int, forms: list[Form]) -> Batch:
        with torch.cuda.device(self.card):
            batch = self.make(step).to(self.backbone.device)
            for form in forms:
                plan(self.backbone, batch.tokens, form)
        return batch
