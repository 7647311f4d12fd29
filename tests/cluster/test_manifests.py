"""The cluster files that we ship against the schemas of those who read them."""

from __future__ import annotations

import copy
import json
import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[2]
AWS = ROOT / "cluster" / "aws.yaml"
KUBERAY = ROOT / "cluster" / "kuberay-rayjob.yaml"


@pytest.fixture
def aws() -> dict[str, Any]:
    return yaml.safe_load(AWS.read_text())


@pytest.fixture
def rayjob() -> dict[str, Any]:
    return yaml.safe_load(KUBERAY.read_text())


def ray_schema() -> dict[str, Any]:
    (folder,) = find_spec("ray").submodule_search_locations
    return json.loads((Path(folder) / "autoscaler" / "ray-schema.json").read_text())


def rayjob_schema() -> dict[str, Any]:
    schema = json.loads((ROOT / "tests" / "schemas" / "kuberay-rayjob-v1.json").read_text())
    schema["properties"]["metadata"] = {"type": "object", "properties": {"name": {}, "namespace": {}}}
    return _closed(schema)


def _closed(schema: Any) -> Any:
    """Refuse unknown keys everywhere: Kubernetes drops them without a word, and a typo is one."""
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        closed.setdefault("additionalProperties", False)
    return closed


def test_the_aws_file_follows_ray(aws):
    from ray.autoscaler._private.util import prepare_config, validate_config

    jsonschema.validate(aws, ray_schema())
    validate_config(prepare_config(copy.deepcopy(aws)))


def test_the_kubernetes_file_follows_kuberay(rayjob):
    assert (rayjob["apiVersion"], rayjob["kind"]) == ("ray.io/v1", "RayJob")
    jsonschema.validate(rayjob, rayjob_schema())


def test_a_typo_in_the_kubernetes_file_would_be_seen(rayjob):
    rayjob["spec"]["rayClusterSpec"]["enableInTreeAutoscalling"] = True
    with pytest.raises(jsonschema.ValidationError, match="enableInTreeAutoscalling"):
        jsonschema.validate(rayjob, rayjob_schema())


def test_aws_keeps_trials_off_the_head_and_machines_away_until_needed(aws):
    types = aws["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0}
    assert types["gpu"]["min_workers"] == 0
    assert types["gpu"]["max_workers"] <= aws["max_workers"]
    assert "--num-cpus=0" in aws["head_start_ray_commands"][-1]


def test_aws_is_closed_to_the_outside(aws):
    for command in (aws["head_start_ray_commands"][-1], aws["worker_start_ray_commands"][-1]):
        assert "RAY_AUTH_MODE=token" in command
        assert "0.0.0.0" not in command
    assert "--dashboard-host=127.0.0.1" in aws["head_start_ray_commands"][-1]
    assert all("token" not in path and ".ssh" not in path for path in aws["file_mounts"].values())


def test_aws_mounts_files_that_exist(aws):
    assert all((ROOT / path).is_file() for path in aws["file_mounts"].values())


def test_kubernetes_takes_the_token_from_a_secret_and_cleans_up(rayjob):
    spec = rayjob["spec"]
    assert spec["rayClusterSpec"]["authOptions"] == {"mode": "token", "secretName": "prx-sweeps-token"}
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["rayClusterSpec"]["enableInTreeAutoscaling"] is True
    assert spec["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert yaml.safe_load(spec["runtimeEnvYAML"])["working_dir"].startswith("/")


def test_kubernetes_and_constraints_name_one_ray(rayjob):
    constraints = (ROOT / "constraints.txt").read_text().splitlines()
    assert f"ray=={rayjob['spec']['rayClusterSpec']['rayVersion']}" in constraints


def test_kubernetes_runs_a_shipped_sweep_into_a_mounted_store(rayjob):
    command = shlex.split(rayjob["spec"]["entrypoint"])
    assert command[:4] == ["python", "-m", "sweeps", "run"]
    assert (ROOT / command[4]).is_file()
    groups = rayjob["spec"]["rayClusterSpec"]
    for group in (groups["headGroupSpec"], *groups["workerGroupSpecs"]):
        mounts = group["template"]["spec"]["containers"][0]["volumeMounts"]
        assert command[command.index("--store") + 1] in [mount["mountPath"] for mount in mounts]
