"""How many steps are replays of a recorded one, on captions of real lengths, and what it saves."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from benchmarks.gpu.scale import Scale
from benchmarks.gpu.sheet import Line
from benchmarks.gpu.stacks import Counter, begin, no_graphs, step_together
from benchmarks.gpu.trials import text_only, trials
from trainables.trials.stacked import StackedRuns

BATCHES = (32, 128, 256, 512)
LEAST = 90.0  # % of steps


def measure(scale: Scale) -> Iterator[Line]:
    clip = text_only(scale)
    members, steps = (2, 6) if scale.small else (2, 200)
    for batch in (8, 16) if scale.small else BATCHES:
        took = {}
        for graphs in (True, False):
            counter = Counter()
            with trials(clip, 4 * batch if scale.small else 4096) as make:
                runs = make.make("soft_prompt", members, batch_size=batch)
                stack = StackedRuns(runs, counter if graphs else no_graphs)
                begin(runs)
                count = steps if graphs else max(3, steps // 8)
                times = [scale.seconds(lambda: step_together(stack)) for _ in range(count)]  # noqa: B023
            took[graphs] = 1000 * median(times[count // 2 :])
            if graphs:
                yield Line(
                    f"batch {batch}: steps replayed, of {steps}",
                    100 * counter.replayed / steps,
                    "%",
                    least=None if scale.small else LEAST,
                )
        if scale.small:
            continue
        yield Line(f"batch {batch}: a step with graphs", took[True], "ms")
        yield Line(f"batch {batch}: a step without", took[False], "ms")
