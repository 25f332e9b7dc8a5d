"""The one way to reach Ray: the cluster that we run on if there is one, else this machine.

Flows in: the environment (`RAY_ADDRESS`, as `ray job submit` sets it). Flows out: a connected Ray,
quiet, whose workers can import this package from a checkout as well as from an installation. A
cluster that cannot be reached, or goes away, is an error within a minute, and so is a Ray of this
machine that was killed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from trainables.errors import CliptuneError

REACHED_IN = 10.0  # seconds to answer, at first
GONE_AFTER = 45.0  # seconds without an answer; after 60 Ray ends the process in its own words
GONE_HERE_AFTER = 3.0  # where no network lies between: then it is after 10, and without a word


def check_here(precision: str, gpus: object) -> None:
    """Raise where this machine is the one that trains and cannot train in `precision`. Workers
    elsewhere check for themselves."""
    from trainables.hardware import check_precision, default_device

    if precision == "bf16" and not os.environ.get("RAY_ADDRESS"):
        check_precision("bf16", "cpu" if gpus == 0 else default_device(), "precision")


def quiet_tune() -> None:
    """Set the environment variables through which alone Ray Tune takes some settings; to be called
    before Ray is imported."""
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"  # a failed trial's result has no metric
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # `Interrupt` handles the signals
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # its tables heed no verbosity; `Progress` says enough
    os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", "16")  # that wait for a free place
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # our callbacks say what it would log


def cause(error: Exception) -> str:
    """Why a group of Ray Train workers ended, in a line: the workers' own words, or the first
    sentence of the error that kept them from starting."""
    failures = getattr(error, "worker_failures", None)  # by rank, a traceback each
    if not failures:
        said = str(error).strip() or type(error).__name__
        return said.splitlines()[-1].split(". ")[0]
    last = (str(failures[rank]).strip().splitlines()[-1] for rank in sorted(failures))
    # Without the name of the module before that of the error.
    return "; ".join(dict.fromkeys(re.sub(r"^(\w+\.)+(?=\w+:)", "", line) for line in last))


def connect(dashboard: bool = False) -> None:
    """Connect to Ray unless this process already is. `dashboard` counts where Ray is started
    here."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Who asked for no GPU sees none. (And unset, it is a FutureWarning.)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # workers are many as it is
    import ray

    if ray.is_initialized():
        return
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address := os.environ.get("RAY_ADDRESS"):
        if not reached(address, REACHED_IN):
            raise CliptuneError(f"`RAY_ADDRESS` must be of a cluster that runs, got `{address}`.")
        try:
            ray.init(**quiet)  # a job's own runtime_env, with its working_dir, is inherited
        except (ConnectionError, ray.exceptions.AuthenticationError) as error:
            raise CliptuneError(
                f"the cluster at `RAY_ADDRESS`, `{address}`, must let this process in, got: "
                f"{error} Where it asks for a token, set `RAY_AUTH_MODE=token` and "
                "`RAY_AUTH_TOKEN`."
            ) from None
        # Of Ray's client only the port that it was given may be open to it.
        client = address.startswith("ray://")
        head = address if client else ray.get_runtime_context().gcs_address
        _hold_on({head: GONE_AFTER} | ({} if client else _raylet()))
        return
    # Workers of a local Ray inherit this environment; a runtime_env would start each one anew.
    root = str(Path(__file__).parents[1])
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if root not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [root, *paths]))
    try:
        ray.init(address="local", include_dashboard=dashboard, **quiet)
    except Exception as error:  # the one that Ray has for processes that do not come up
        raise CliptuneError(
            f"Ray must come up on this machine, got: {cause(error)}. Nothing was changed by it: "
            "run the same command again."
        ) from error
    _hold_on({ray.get_runtime_context().gcs_address: GONE_HERE_AFTER} | _raylet())


@contextlib.contextmanager
def places_freed() -> Iterator[None]:
    """Where the block is interrupted, the places in the cluster that this process took in it are
    free again. Tune frees its own at its end and at errors, of which an interrupt is none; who
    catches it and goes on would wait for them."""
    import ray
    from ray.util import placement_group_table, remove_placement_group
    from ray.util.placement_group import PlacementGroup

    before = placement_group_table().keys()
    try:
        yield
    except KeyboardInterrupt:
        own = ray.get_runtime_context().get_job_id()  # a place's id ends in that of its job
        for place in placement_group_table().keys() - before:
            if place.endswith(own):
                remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(place))))
        raise


def _raylet() -> dict[str, float]:
    """The address of this machine's own raylet, and how long it may be silent."""
    import ray

    own = ray.get_runtime_context().get_node_id()
    node = next(node for node in ray.nodes() if node["NodeID"] == own)
    return {f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}": GONE_HERE_AFTER}


def _hold_on(patience: dict[str, float]) -> None:
    import ray

    threading.Thread(target=hold_on, args=(patience, ray.is_initialized), daemon=True).start()


def reached(address: str, seconds: float) -> bool:
    """Whether something answers at `host:port` within `seconds`. (Ray would try for minutes.) An
    address that Ray alone can resolve, as `auto`, counts as reached."""
    host, _, port = address.rpartition("//")[2].rpartition(":")
    if not port.isdigit():
        return True
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        with contextlib.suppress(OSError):
            socket.create_connection((host.strip("[]"), int(port)), timeout=left).close()
            return True
        time.sleep(min(1.0, left))
    return False


def hold_on(patience: Mapping[str, float], connected: Callable[[], bool]) -> None:
    """End this process, with a message, once one of the cluster's addresses has not answered for as
    many seconds: calls that wait for it would never return."""
    while all(reached(address, seconds) for address, seconds in patience.items()):
        time.sleep(2)
    if not connected():
        return
    here = "RAY_ADDRESS" not in os.environ
    whose, then = (
        ("the Ray of this machine", "") if here else ("the cluster", ", once a cluster runs")
    )
    print(
        f"error: {whose} at `{next(iter(patience))}` is gone. What was saved stands: the same "
        f"command goes on from there{then}.",
        file=sys.stderr,
        flush=True,
    )
    os._exit(2)
