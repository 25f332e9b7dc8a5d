"""A training run as a Ray Tune trial. The only module here that imports Ray.

Flows in: an Optuna trial's number and its dotted values. Flows out: one result an epoch, with the
metric that the scheduler and the searcher read. The worker process outlives its trials: backbone
and features are loaded once, in `setup`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray import tune

from trainables.errors import CliptuneError
from trainables.trials.jobs import Job
from trainables.trials.runners import Nobody, Runner


class AdapterTrial(tune.Trainable):
    """One epoch a step. `make_runner` is called once a worker process, not once a trial."""

    def setup(self, config: dict[str, Any], make_runner: Callable[[], Runner]) -> None:
        try:
            self.runner = make_runner()
        except (CliptuneError, OSError) as error:  # for a user to mend: no trial's own failure
            self.runner = Nobody(" ".join(str(error).split()))
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.runner.start(Job(**new_config))
        return True

    def step(self) -> dict[str, Any]:
        return self.runner.advance()

    def cleanup(self) -> None:
        self.runner.close()
