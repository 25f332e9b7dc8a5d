"""The page of a search by a population: what changed, and whose weights they were."""

from __future__ import annotations

from pathlib import Path

from pipelines.pages import svg
from pipelines.report.schedule_charts import schedules
from pipelines.tune.study.schedule import Schedule
from trainables.adapters.registry import make_config


def test_each_field_that_changed_is_drawn_with_the_lineage(tmp_path: Path) -> None:
    assert schedules(tmp_path) == []
    changes = "2: optim.lr=0.03 temperature.scale=9; 4: optim.lr=0.0001"
    config = make_config("projection", {"epochs": 5, "changes": changes})
    lineage = [{"member": m, "from_epoch": e} for m, e in ((7, 1), (2, 2), (3, 4))]
    Schedule(config, {}, lineage).write(tmp_path / "schedule.json")
    with svg.style():
        charts, again = schedules(tmp_path), schedules(tmp_path)
    assert charts == again
    assert [name for name, _ in charts] == ["optim.lr", "temperature.scale"]
    for _, chart in charts:
        assert all(f"trial {member}" in chart for member in (7, 2, 3))
        assert "epoch, along the lineage" in chart
        assert "$" not in chart
