"""`python -m evaluation` end to end and every way it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from evaluation import __main__ as cli
from evaluation.images import list_images, read_image


def fill(folder: Path, num: int, *, seed: int, high: int = 256) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(seed)
    for i in range(num):
        width = 16 if i % 4 else 20
        Image.fromarray(rng.integers(0, high, (16, width, 3), dtype=np.uint8)).save(folder / f"{i:03}.png")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("images")
    return fill(root / "real", 16, seed=0), fill(root / "generated", 14, seed=1, high=120)


@pytest.fixture
def options(weights: dict[str, Path]) -> list[str]:
    given = [(f"--{role}", str(weights[role])) for role in ("clip", "dino", "inception")]
    return [*sum(given, ()), "--resamples", "5"]


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def refusal(*arguments: object) -> str:
    found = invoke(*arguments)
    assert found.exit_code == 2
    assert found.stdout == ""
    lines = found.stderr.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


def test_table_names_values_counts_estimators_and_weights(
    folders: tuple[Path, Path], options: list[str], weights: dict[str, Path]
) -> None:
    found = invoke(*folders, *options)
    assert found.exit_code == 0, found.stderr
    for text in ("cmmd", "dino_mmd", "fid", "±", "V-statistic", "14 generated against 16 real"):
        assert text in found.stdout
    assert str(weights["clip"]) in found.stdout


def test_json_equals_the_pure_functions(folders: tuple[Path, Path], options: list[str]) -> None:
    found = json.loads(invoke(*folders, *options, "--json").stdout)
    assert (found["num_real"], found["num_samples"]) == (16, 14)
    assert set(found["estimators"]) == {"cmmd", "dino_mmd", "fid"}
    assert found["versions"]["clip"].startswith("clip:")
    assert found["cmmd"] > 0
    assert found["cmmd_se"] > 0
    same = json.loads(invoke(folders[0], folders[0], *options, "--json").stdout)
    assert same["cmmd"] == pytest.approx(0, abs=1e-9)
    assert same["fid"] == pytest.approx(0, abs=1e-6)


def test_neighbours_are_compared_where_asked_for(folders: tuple[Path, Path], options: list[str]) -> None:
    found = json.loads(invoke(*folders, *options, "--metrics", "knn_precision,coverage", "--json").stdout)
    assert 0 <= found["knn_precision"] <= 1
    assert found["coverage_se"] > 0
    assert not {"knn_recall", "cmmd"} & set(found)


def test_chosen_metrics_need_only_their_weights(folders: tuple[Path, Path], weights: dict[str, Path]) -> None:
    arguments = ("--metrics", "cmmd", "--clip", weights["clip"], "--resamples", 5, "--json")
    found = json.loads(invoke(*folders, *arguments).stdout)
    assert set(found["weights"]) == {"clip"}
    assert "fid" not in found


def test_embedded_weights_are_the_default_and_said_so(
    folders: tuple[Path, Path], options: list[str], weights: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "_embedded_folder", lambda role: weights[role])
    found = invoke(*folders, "--resamples", 5)
    assert found.exit_code == 0, found.stderr
    assert "clip: embedded weights" in found.stdout


def test_embedded_folder_is_found_without_importing_prx() -> None:
    code = (
        "import sys\nfrom evaluation.__main__ import _embedded_folder\n"
        "try:\n    _embedded_folder('clip')\nexcept FileNotFoundError:\n    pass\n"
        "print('prx' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


def test_missing_and_empty_folders(folders: tuple[Path, Path], options: list[str], tmp_path: Path) -> None:
    assert "nowhere must exist, got no such folder" in refusal(tmp_path / "nowhere", folders[1], *options)
    (tmp_path / "empty").mkdir()
    assert "empty must hold .png, .jpg, .jpeg files, got none" in refusal(
        folders[0], tmp_path / "empty", *options
    )


def test_unreadable_image_is_named(folders: tuple[Path, Path], options: list[str], tmp_path: Path) -> None:
    bad = fill(tmp_path / "bad", 14, seed=2)
    (bad / "007.png").write_bytes(b"not a png")
    assert "007.png must be a readable PNG or JPEG" in refusal(folders[0], bad, *options)


def test_too_few_images(folders: tuple[Path, Path], options: list[str], tmp_path: Path) -> None:
    few = fill(tmp_path / "few", 12, seed=3)
    message = refusal(folders[0], few, *options)
    assert f"number of images in {few} must be greater than 12 for fid" in message
    assert invoke(folders[0], few, *options, "--allow-few").exit_code == 0
    one = fill(tmp_path / "one", 1, seed=4)
    assert "must be at least 4" in refusal(folders[0], one, *options, "--allow-few")


def test_bad_options(folders: tuple[Path, Path], options: list[str], tmp_path: Path) -> None:
    assert "--metrics must be among cmmd, dino_mmd, fid, knn_precision, knn_recall, density, coverage, " in refusal(
        *folders, *options, "--metrics", "kid"
    )
    assert "weights folder" in refusal(*folders, *options, "--clip", tmp_path / "nowhere")
    assert "resamples must be 0 (closed form) or at least 2, got 1" in refusal(*folders, *options, "--resamples", "1")


def test_runs_as_a_module(folders: tuple[Path, Path], weights: dict[str, Path]) -> None:
    command = [sys.executable, "-m", "evaluation", *map(str, folders), "--metrics", "cmmd", "--json"]
    command += ["--clip", str(weights["clip"]), "--resamples", "5"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert found.stderr == ""
    assert json.loads(found.stdout)["num_samples"] == len(list_images(folders[1]))
    assert read_image(list_images(folders[1])[0]).shape[0] == 3
