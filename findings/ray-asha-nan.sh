#!/usr/bin/env bash
# Ray Tune's ASHA never stops a trial whose metric is NaN.
#
# One expects that a diverged trial is the first to be stopped. Instead it passes every rung, since
# NaN is not below the cutoff, and trains to the last epoch while finite trials are stopped at the
# first.
# What to do: end the trial yourself where its metric is not finite.
#
# Seen with ray 2.60.0, Python 3.11: the NaN trial trains for 9 epochs, 0.2 and 0.1 for 1.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "ray[tune]==2.60.0"
RAY_USAGE_STATS_ENABLED=0 "$folder/venv/bin/python" - "$folder" <<'PYTHON'
import math
import sys

import ray
from ray import tune


def train(config: dict[str, float]) -> None:
    for _ in range(9):
        tune.report({"score": config["score"]})


ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
tuner = tune.Tuner(
    train,
    param_space={"score": tune.grid_search([0.3, math.nan, 0.2, 0.1])},
    tune_config=tune.TuneConfig(
        scheduler=tune.schedulers.ASHAScheduler(
            metric="score", mode="max", max_t=9, grace_period=1, reduction_factor=3
        ),
        max_concurrent_trials=1,
    ),
    run_config=tune.RunConfig(storage_path=sys.argv[1] + "/results", verbose=0),
)
epochs = [one.metrics["training_iteration"] for one in tuner.fit()]
print("ray", ray.__version__)
print("epochs of the trials at 0.3, NaN, 0.2 and 0.1:", epochs)
assert epochs == [9, 9, 1, 1], "this has changed"
PYTHON
