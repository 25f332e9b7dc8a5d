"""`cluster.yaml` is what Ray's cluster launcher accepts, and starts what its comments promise."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from tests import ROOT


@pytest.fixture
def config() -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / "cluster.yaml").read_text()))


def test_ray_accepts_it(config: dict[str, Any]) -> None:
    prepared = prepare_config(config)
    validate_config(prepared)
    assert prepared["available_node_types"]["gpu"]["resources"]["GPU"] == 1
    assert prepared["available_node_types"]["gpu"]["max_workers"] > 0


def test_ray_refuses_an_unknown_key(config: dict[str, Any]) -> None:
    config["wrokers"] = 3
    with pytest.raises(Exception, match="wrokers"):
        validate_config(prepare_config(config))


def test_it_installs_what_is_pinned_and_mounts_what_exists(config: dict[str, Any]) -> None:
    for local in config["file_mounts"].values():
        assert (ROOT / local).exists()
    assert any("requirements.lock" in command for command in config["setup_commands"])
