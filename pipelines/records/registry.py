"""The record keepers that `--log` may name.

Flows in: nothing. Flows out: their classes, by name.
"""

from __future__ import annotations

from pipelines.records.keeper import Keeper
from pipelines.records.kinds import Log
from pipelines.records.mlflow import Mlflow
from pipelines.records.wandb import Wandb

KEEPERS: dict[Log, type[Keeper]] = {"mlflow": Mlflow, "wandb": Wandb}
