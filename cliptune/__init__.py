"""cliptune from Python: every stage as a function, and what was tuned as an object.

Flows in: paths, as on the command line; a keyword is the flag of the same name. Flows out: what
the stage wrote, as a small dataclass with pandas frames. The command line runs the same stages:
what one began, the other goes on with.

    import cliptune

    study = cliptune.tune("features", out="runs/mine", adapter=["lora", "projection"], trials=32)
    result = cliptune.evaluate("runs/mine")
    tuned = cliptune.load("runs/mine")
    tuned.search("a dog on the beach", images="photos")

What is wrong with a value or a file is a `CliptuneError`, in one sentence. Ctrl-C saves what trains
and raises `KeyboardInterrupt`; the same call goes on from there.
"""

from cliptune.results import Arena, Best, Result, Run, Shards, Study
from cliptune.stages import arena, draw, encode, evaluate, export, report, shards, train, tune
from cliptune.tuned import Tuned, load
from trainables.errors import CheckpointError, CliptuneError, ConfigError, DataError

__all__ = [
    "Arena",
    "Best",
    "CheckpointError",
    "CliptuneError",
    "ConfigError",
    "DataError",
    "Result",
    "Run",
    "Shards",
    "Study",
    "Tuned",
    "arena",
    "draw",
    "encode",
    "evaluate",
    "export",
    "load",
    "report",
    "shards",
    "train",
    "tune",
]
