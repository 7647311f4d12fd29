"""What a run of the embedded world is measured with, and what is written beside its references."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from prx.config import RunConfig, parse_run_config
from prx.data import reference_set
from prx.errors import UserError
from prx.yamlsource import read_yaml
from sweeps import measure
from sweeps.results import MEASURED

PRESET = Path(measure.__file__).parents[1] / "prx" / "presets" / "embedded.yaml"


@pytest.fixture(scope="module")
def config() -> RunConfig:
    given = read_yaml(PRESET).data
    return parse_run_config(given | {"evaluation": given["evaluation"] | {"num_samples": 80, "every": 1}})


def test_every_column_is_measured_and_its_means_are_written_down(config: RunConfig, tmp_path: Path):
    images = reference_set(config, tmp_path).images
    found = measure.evaluate(config, tmp_path)(images)
    measure._evaluator.cache_clear()
    assert {*found, "loss", "samples_per_second"} >= set(MEASURED) - {"batches_per_second"}
    assert set(found) <= set(MEASURED)
    assert found["cmmd"] == pytest.approx(0, abs=1e-9)
    assert found["clip_score"] > 85  # each real image beside its own caption
    assert found["adherence"] > 0.95
    (file,) = (tmp_path / "references").glob("*.json")
    written = json.loads(file.read_text())
    assert file.stem == written["reference_hash"]
    assert written["reference_count"] == "80"
    assert written["dino_version"].startswith("dino:squash-bicubic-v1")
    assert "V-statistic" in written["cmmd_estimator"]


def test_too_few_samples_for_fid_name_settings_that_a_run_has(config: RunConfig, tmp_path: Path):
    few = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"num_samples": 40})})
    with pytest.raises(UserError, match=r"got 40; raise evaluation\.num_samples, or .* evaluation\.inception: null$"):
        measure.evaluate(few, tmp_path)


def test_without_a_network_images_are_only_counted(config: RunConfig, tmp_path: Path):
    nothing = dict.fromkeys(("clip", "dino", "inception", "reader"))
    bare = config.model_copy(update={"evaluation": config.evaluation.model_copy(update=nothing)})
    assert measure.evaluate(bare, tmp_path)(torch.zeros(3, 3, 32, 32, dtype=torch.uint8)) == {"num_samples": 3.0}


def test_a_text_tower_is_needed_for_captions_alone(config: RunConfig, tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model_type": "clip_vision_model"}')
    alone = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"clip": str(tmp_path)})})
    assert measure.unmeasurable("clip_score", config) is None
    assert measure.unmeasurable("cmmd", alone) is None
    assert "text tower" in (measure.unmeasurable("clip_score", alone) or "")
    assert measure.unmeasurable("samples_per_second", config) is None
