#!/usr/bin/env bash
# Optuna's TPE takes every pruned trial for worse than every complete one, whatever it reached.
#
# One expects that TPE compares trials by their values, and that a pruned trial stands where its last
# report puts it. Instead its good share is filled with complete trials first. Where a pruner keeps a
# trial by other marks than its value (a rung of its own, a budget, another kind of model), the
# region of the best values is searched last.
# What to do: tell such trials COMPLETE with the best that they reported.
#
# Seen with optuna 5.0.0, Python 3.11: 43 of 50 suggestions go to where all trials ended at 0.1.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check optuna==5.0.0
"$folder/venv/bin/python" - <<'PYTHON'
import optuna
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial

optuna.logging.set_verbosity(optuna.logging.WARNING)
space = {"x": FloatDistribution(0, 1)}


def suggested(pruned: bool) -> int:
    """How many of 50 suggestions go to x < 0.5, where trials reach 0.1; above it they reach 0.9."""
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))
    for i in range(20):
        low = create_trial(params={"x": 0.1 + i / 500}, distributions=space, value=0.1)
        state = {"state": TrialState.PRUNED} if pruned else {"value": 0.9}
        steps = {1: 0.9, 2: 0.9}
        params = {"x": 0.9 + i / 500}
        high = create_trial(params=params, distributions=space, intermediate_values=steps, **state)
        study.add_trials([low, high])
    return sum(study.ask(space).params["x"] < 0.5 for _ in range(50))


print("optuna", optuna.__version__)
complete, pruned = suggested(pruned=False), suggested(pruned=True)
print(f"the 0.9 complete: {complete} of 50 suggestions near the 0.1")
print(f"the 0.9 pruned:   {pruned} of 50 suggestions near the 0.1")
assert complete < 25 < pruned, "this has changed"
PYTHON
