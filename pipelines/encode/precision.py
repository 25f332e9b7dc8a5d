"""The precision that the towers of one store compute in.

Flows in: `--precision`, and how the cluster is to be divided. Flows out: fp32 or bf16, the same for
all towers and known before any of them starts, as it is a part of the store's key.
"""

from __future__ import annotations

import os

from pipelines.capacity import Gpus
from pipelines.cluster import connect
from pipelines.encode.towers import Resources
from trainables.errors import ConfigError
from trainables.hardware import Precision, Resolved, check_precision, default_device, of_store


def settle(precision: Precision, workers: int | str, gpus: Gpus, wait: float) -> Resolved:
    """The value of `precision` where the towers will run. In a cluster that may be a machine unlike
    this one, so a worker there is asked. Raises `ConfigError` where the precision cannot be had."""
    if precision == "fp32":
        return precision
    if not os.environ.get("RAY_ADDRESS"):
        return _look(precision, "cpu" if gpus == 0 else default_device())
    connect()
    import ray

    plan = Resources.take(workers, gpus, wait)
    if precision == "auto" and not plan.tower_gpus:
        return of_store(precision, "cpu")
    ask = ray.remote(num_cpus=plan.tower_cpus, num_gpus=plan.tower_gpus)(_look_there)
    found: Resolved | ConfigError = ray.get(ask.remote(precision))
    if isinstance(found, ConfigError):
        raise found
    return found


def _look(precision: Precision, device: str) -> Resolved:
    check_precision(precision, device, "--precision")
    return of_store(precision, device)


def _look_there(precision: Precision) -> Resolved | ConfigError:
    """The answer of a worker. An error is returned as a value: Ray would put a traceback around
    it."""
    try:
        return _look(precision, default_device())
    except ConfigError as error:
        return error
