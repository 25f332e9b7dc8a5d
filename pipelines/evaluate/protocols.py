"""Which protocol measures a task.

Flows in: a contest and the split to measure. Flows out: the protocol of retrieval, of classes or of
captions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from pipelines.evaluate.accuracy import ClassProtocol
from pipelines.evaluate.captions import CaptionProtocol
from pipelines.evaluate.protocol import Protocol
from pipelines.runs.contestants import Contest
from trainables.adapters.base import Adapter
from trainables.features.split import SplitFeatures
from trainables.models.backbone import Backbone

AnyProtocol: TypeAlias = Protocol | ClassProtocol | CaptionProtocol


def protocol_of(
    contest: Contest,
    data: SplitFeatures,
    backbone: Backbone,
    adapters: Sequence[Adapter[Any]],
    resamples: int,
) -> AnyProtocol:
    """How the contest's task is measured on `data`."""
    if contest.task == "captioning":
        return CaptionProtocol(data, backbone, resamples)
    if contest.draw is not None:
        calibrations = [adapter.calibration for adapter in adapters]
        same = contest.others is None or contest.others.names == contest.draw.names
        return ClassProtocol(data, resamples, calibrations, same)
    return Protocol(data, resamples)
