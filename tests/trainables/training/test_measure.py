"""What a split's metrics are the means of, and that it is kept beside the checkpoint it is of."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.trainables.adapters.test_few_shot_runs import finish
from tests.trainables.adapters.test_few_shot_runs import start as classify
from tests.trainables.training.test_loop import METRIC
from tests.trainables.training.test_loop import start as retrieve
from trainables.metrics.classification import calibrated_likelihood, log_likelihood
from trainables.models.backbone import Backbone
from trainables.training.checkpoint import load_adapter, val_values
from trainables.training.integrity import verify
from trainables.training.measure import CALIBRATED, examine
from trainables.training.predict import score
from trainables.training.selection import METRICS


def test_the_best_checkpoint_holds_what_its_metric_is_the_mean_of(
    tmp_path: Path, backbone: Backbone, features: Path
) -> None:
    run = finish(classify(tmp_path, backbone, features, "clip_adapter"))
    assert run.best is not None
    verify(tmp_path / "best")
    kept = val_values(tmp_path / "best")
    assert kept["value"].dtype == torch.float32
    assert float(kept["value"].double().mean()) == pytest.approx(run.best[run.metric], rel=1e-6)
    mean = float(kept[CALIBRATED].double().mean())
    assert mean == pytest.approx(run.best[f"val/{CALIBRATED}"], rel=1e-6)
    assert len(kept["image"]) == len(run.val.groups)
    assert val_values(tmp_path / "last") == {}  # as in folders of older runs


def test_of_retrieval_a_query_knows_its_image(
    tmp_path: Path, backbone: Backbone, features: Path
) -> None:
    run = retrieve(tmp_path, backbone, features, "projection")
    run.advance()
    assert run.best is not None
    kept = val_values(tmp_path / "best")
    assert kept.keys() == {"value", "image"}
    assert torch.equal(kept["image"].long(), run.val.groups[run.val.caption_rows])
    assert float(kept["value"].double().mean()) == pytest.approx(run.best[METRIC], rel=1e-6)


def test_every_metric_of_classes_is_the_mean_of_its_values(
    tmp_path: Path, backbone: Backbone, features: Path
) -> None:
    run = finish(classify(tmp_path, backbone, features, "linear_probe", epochs=1))
    assert run.val.labels is not None
    assert run.val.classes is not None
    uneven = run.val.take(
        dict(zip(run.val.ids[:7], run.val.labels[:7].tolist(), strict=True)), run.val.classes
    )
    found = examine(load_adapter(tmp_path / "best", backbone), uneven)
    for name in (*METRICS["classification"], f"val/{CALIBRATED}"):
        metric = name.removeprefix("val/")
        assert float(found.values[metric].mean()) == pytest.approx(found.metrics[metric])
    assert run.best is not None
    assert run.best[f"val/{CALIBRATED}"] > run.best["val/log_likelihood"] - 0.01


def test_the_temperature_is_the_one_that_fits_best(
    tmp_path: Path, backbone: Backbone, features: Path
) -> None:
    run = finish(classify(tmp_path, backbone, features, "clip_adapter", epochs=1))
    assert run.val.labels is not None
    assert run.val.classes is not None
    scores = score(run.adapter, run.val, run.val.classes)
    mean, scale = calibrated_likelihood(scores, run.val.labels)
    assert mean == pytest.approx(float(log_likelihood(scores, run.val.labels, scale).mean()))
    count = len(scores)  # labels of which each counts (n + 1) / (n + 2)
    soft = torch.full(scores.shape, 1 / (count + 2) / (scores.shape[1] - 1), dtype=torch.float64)
    soft.scatter_(1, run.val.labels[:, None], (count + 1) / (count + 2))

    def fit(at: float) -> float:
        return float(((at * scores.double()).log_softmax(1) * soft).sum(1).mean())

    for other in torch.logspace(-1, 3, 200).tolist():
        assert fit(other) <= fit(scale) + 1e-9
    assert calibrated_likelihood(10 * scores, run.val.labels)[0] == pytest.approx(mean, abs=1e-6)
    assert calibrated_likelihood(scores, run.val.labels) == (mean, scale)
