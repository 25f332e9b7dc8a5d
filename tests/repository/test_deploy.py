"""`deploy/`: KubeRay's manifest keeps KubeRay's rules, and the Slurm script runs for real, with a
`srun` that knows one machine."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from pipelines.tune.args import Args
from tests import ROOT
from tests.autoscaling import BIN
from tests.repository.test_wheel import PACKAGES

DEPLOY = ROOT / "deploy"


def record(required: tuple[str, ...] = (), **fields: Any) -> dict[str, Any]:
    """The schema of a mapping that has these fields and no others."""
    closed = {"type": "object", "additionalProperties": False}
    return {**closed, "properties": fields, "required": list(required)}


def each(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": 1}


TEXT, COUNT, FLAG = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
TEXTS = {"type": "object", "additionalProperties": TEXT}
# What of a pod the manifest has; by Kubernetes' reference of core/v1.
POD = record(
    ("spec",),
    spec=record(
        ("containers",),
        securityContext=record(fsGroup=COUNT),
        containers=each(
            record(
                ("name", "image"),
                name={"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"},
                image=TEXT,
                resources=record(requests=TEXTS, limits=TEXTS),
                volumeMounts=each(record(("name", "mountPath"), name=TEXT, mountPath=TEXT)),
            )
        ),
        volumes=each(
            record(
                ("name",),
                name=TEXT,
                persistentVolumeClaim=record(("claimName",), claimName=TEXT),
                emptyDir=record(medium={"enum": ["", "Memory"]}, sizeLimit=TEXT),
            )
        ),
    ),
)
# What the manifest has of `rayjobs.ray.io`, version v1, in the CRD that KubeRay 1.7.0's chart of
# the operator holds: names, types, choices and what is required are the CRD's.
RAYJOB = record(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=record(("name",), name=TEXT),
    spec=record(
        ("entrypoint", "rayClusterSpec"),
        entrypoint=TEXT,
        shutdownAfterJobFinishes=FLAG,
        ttlSecondsAfterFinished=COUNT,
        backoffLimit=COUNT,
        rayClusterSpec=record(
            ("headGroupSpec",),
            rayVersion=TEXT,
            enableInTreeAutoscaling=FLAG,
            autoscalerOptions=record(version={"enum": ["v1", "v2"]}, idleTimeoutSeconds=COUNT),
            authOptions=record(mode={"enum": ["disabled", "token"]}),
            headGroupSpec=record(("template",), rayStartParams=TEXTS, template=POD),
            workerGroupSpecs=each(
                record(
                    ("groupName", "template"),
                    groupName=TEXT,
                    replicas=COUNT,
                    minReplicas=COUNT,
                    maxReplicas=COUNT,
                    rayStartParams=TEXTS,
                    template=POD,
                )
            ),
        ),
    ),
)


@pytest.fixture
def rayjob() -> dict[str, Any]:
    return dict(yaml.safe_load((DEPLOY / "rayjob.yaml").read_text()))


def test_the_rayjob_keeps_kuberays_schema(rayjob: dict[str, Any]) -> None:
    jsonschema.validate(rayjob, RAYJOB)
    rayjob["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplcas"] = 8
    with pytest.raises(jsonschema.ValidationError, match="maxReplcas"):
        jsonschema.validate(rayjob, RAYJOB)


def test_the_rayjob_grows_gpus_from_none_and_asks_for_them(rayjob: dict[str, Any]) -> None:
    import tyro

    cluster = rayjob["spec"]["rayClusterSpec"]
    (group,) = cluster["workerGroupSpecs"]
    assert cluster["enableInTreeAutoscaling"]
    assert (group["minReplicas"], group["replicas"], group["maxReplicas"]) == (0, 0, 8)
    assert cluster["rayVersion"] == importlib.metadata.version("ray")
    python, module, stage, *flags = rayjob["spec"]["entrypoint"].split()
    assert (python, module, stage) == ("python", "-m", "pipelines.tune")
    args = tyro.cli(Args, args=flags)
    assert (args.gpus, args.concurrent) == (1.0, group["maxReplicas"])
    for template in (cluster["headGroupSpec"]["template"], group["template"]):
        (container,) = template["spec"]["containers"]
        mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert set(mounted) == {volume["name"] for volume in template["spec"]["volumes"]}
        assert args.features.is_relative_to(mounted["shared"])
        assert args.out.is_relative_to(mounted["shared"])
    assert group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]


@pytest.fixture(scope="module")
def image() -> list[list[tuple[str, str]]]:
    """The Dockerfile's stages, each its instructions; before them what is said of all of them."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    stages: list[list[tuple[str, str]]] = [[]]
    for line in filter(None, text.replace("\\\n", "").splitlines()):
        instruction, words = line.split(maxsplit=1)
        if instruction == "FROM":
            stages.append([])
        stages[-1].append((instruction, words))
    return stages


def test_the_image_is_built_on_any_base_and_ends_without_what_built_it(
    image: list[list[tuple[str, str]]],
) -> None:
    before, python, build, last = image
    assert before == [("ARG", "BASE=python:3.11-slim")]
    names = [stage[0][1] for stage in (python, build, last)]
    assert names == ["${BASE} AS python", "python AS build", "python"]
    assert [words for one, words in last if one == "COPY"] == [
        "--from=build /opt/cliptune /opt/cliptune"
    ]
    assert ("RUN", "python3 -m venv /opt/cliptune") in build
    assert ("ENV", "PATH=/opt/cliptune/bin:$PATH") in python
    assert any(one == "RUN" and " wget " in words for one, words in python)


def test_the_image_holds_the_wheel_and_what_is_pinned(
    image: list[list[tuple[str, str]]],
) -> None:
    build = [words for one, words in image[2] if one in ("COPY", "RUN")]
    lock, pins, checkout, wheel = build[1:]
    assert (lock, checkout) == ("requirements.lock .", ". .")  # a change of code keeps the layer
    assert pins.endswith('--extra-index-url "$INDEX" -r requirements.lock')
    assert wheel.split("&&")[1].split()[-2:] == ["--no-deps", "/wheel/*.whl"]
    ignored = (ROOT / ".dockerignore").read_text().split()
    needed = {"pyproject.toml", "README.md", "LICENSE", "requirements.lock", *PACKAGES}
    assert needed.isdisjoint(ignored)
    for one, words in chain(*image):
        if one == "RUN":
            subprocess.run(["sh", "-n", "-c", words], check=True)


def test_the_image_runs_a_command_as_a_user_who_can_write_the_volume(
    image: list[list[tuple[str, str]]], rayjob: dict[str, Any]
) -> None:
    said = dict(image[-1])
    (command,) = json.loads(said["ENTRYPOINT"])
    assert command in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert json.loads(said["CMD"]) == ["--help"]
    user, group = map(int, said["USER"].split(":"))
    assert user
    cluster = rayjob["spec"]["rayClusterSpec"]
    for pods in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert pods["template"]["spec"]["securityContext"] == {"fsGroup": group}


SRUN = """#!/bin/bash
echo "srun $*" >> "$CALLS"
while [[ $1 == --* ]]; do shift; done
exec "$@"
"""
SCONTROL = "#!/bin/bash\nprintf 'first\\nsecond\\n'\n"
COMMAND = """
import os, ray
ray.init(logging_level="ERROR")
print("nodes", sum(node["Alive"] for node in ray.nodes()), ray.cluster_resources()["CPU"])
print("token", len(os.environ["RAY_AUTH_TOKEN"]), os.environ["RAY_AUTH_MODE"])
raise SystemExit(3)
"""


@pytest.mark.slow
def test_the_slurm_script_starts_every_node_runs_the_command_and_ends_all(tmp_path: Path) -> None:
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    job = str(os.getpid())
    environment = {name: value for name, value in os.environ.items() if name[:4] != "RAY_"} | {
        **{"PATH": f"{tmp_path}:{BIN}:{os.environ['PATH']}", "CALLS": str(tmp_path / "calls")},
        **{"SLURM_JOB_ID": job, "SLURM_JOB_NODELIST": "[first-second]"},
        **{"SLURM_CPUS_PER_TASK": "1"},
    }
    done = subprocess.run(
        [DEPLOY / "slurm.sh", sys.executable, "-c", COMMAND],
        check=False,
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert "nodes 2 2.0" in done.stdout, done.stdout + done.stderr
    assert "token 64 token" in done.stdout
    assert done.returncode == 3
    head, workers = (tmp_path / "calls").read_text().splitlines()
    assert "--nodes=1 --ntasks=1 --nodelist=first" in head
    assert "--head" in head
    assert "--nodes=1 --ntasks=1 --exclude=first" in workers
    assert "--address=" in workers
    running = subprocess.check_output(["ps", "-eo", "args"], text=True)
    assert f"/tmp/ray-{job}/" not in running
    shutil.rmtree(f"/tmp/ray-{job}")  # the logs, which the script leaves
