"""The one way to reach Ray: the cluster we run on if there is one, else this machine.

Flows in: the environment (`RAY_ADDRESS`, as `ray job submit` sets it). Flows out: a connected Ray,
quiet, whose workers can import this package from a checkout as well as from an installation.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path


def quiet_tune() -> None:
    """Settings that Ray Tune has by environment alone; call it before Ray is imported."""
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"  # a failed trial's result has no metric
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # `Interrupt` handles the signals
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # its tables heed no verbosity; `Progress` says enough
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # our callbacks say what it would log


def connect(dashboard: bool = False) -> None:
    """Connect to Ray unless this process already has. `dashboard` counts where we start it."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Who asked for no GPU sees none. (And unset, it is a FutureWarning.)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # workers are many as it is
    import ray

    if ray.is_initialized():
        return
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(**quiet)  # a job's own runtime_env, with its working_dir, is inherited
        return
    # Workers of a local Ray inherit this environment; a runtime_env would start each one anew.
    root = str(Path(__file__).parents[1])
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if root not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [root, *paths]))
    ray.init(address="local", include_dashboard=dashboard, **quiet)
