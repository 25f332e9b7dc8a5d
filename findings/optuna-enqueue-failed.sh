#!/usr/bin/env bash
# Optuna's `enqueue_trial(..., skip_if_exists=True)` also skips values whose only trial FAILED.
#
# One expects that a study which is resumed after a crash enqueues its starting points again, and
# that only those with a result are skipped. Instead a failed trial counts as one that exists: the
# point is dropped without a word and never evaluated. On the other hand 1 is no twin of 1.0: the same
# point from a file with whole numbers is enqueued once more.
# What to do: look at the states of `study.trials` yourself, and compare values as the space has them.
#
# Seen with optuna 5.0.0, Python 3.11.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check optuna==5.0.0
"$folder/venv/bin/python" - <<'PYTHON'
import optuna

optuna.logging.set_verbosity(optuna.logging.ERROR)


def objective(trial: optuna.Trial) -> float:
    x = trial.suggest_float("x", 0, 2)
    if len(study.trials) == 1:
        raise OSError("the machine has no memory left")
    return x


study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
study.enqueue_trial({"x": 1.0}, skip_if_exists=True)
study.optimize(objective, n_trials=1, catch=OSError)
study.enqueue_trial({"x": 1.0}, skip_if_exists=True)
study.optimize(objective, n_trials=1)
print("optuna", optuna.__version__)
told = [(trial.state.name, trial.params["x"]) for trial in study.trials]
print("1.0, which failed, and 1.0 again:", told)
assert told[0] == ("FAIL", 1.0) and told[1][1] != 1.0, "this has changed"
study.enqueue_trial({"x": 1}, skip_if_exists=True)
study.optimize(objective, n_trials=1)
print("1 instead of 1.0:", study.trials[-1].params)
assert study.trials[-1].params == {"x": 1.0}, "this has changed"
PYTHON
