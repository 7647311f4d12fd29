"""What an upload weighs, and what is refused before anything is sent."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.__main__ import app
from cluster.connect import ConnectError
from cluster.launch import DEFAULT_SERVER, MEBIBYTE, _uploaded, job_server, preflight, submit

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "project"
    (root / "data" / "deep").mkdir(parents=True)
    (root / "runs").mkdir()
    (root / "train.py").write_bytes(b"x" * 100)
    (root / "data" / "big.bin").write_bytes(b"x" * 3000)
    (root / "data" / "deep" / "small.bin").write_bytes(b"x" * 20)
    (root / "runs" / "result").write_bytes(b"x" * 5000)
    return root


def test_everything_counts_where_nothing_is_ignored(folder):
    size = preflight(folder)
    assert (size.files, size.total) == (4, 8120)
    assert size.largest[:2] == (("runs/result", 5000), ("data/big.bin", 3000))


@pytest.mark.parametrize("name", [".gitignore", ".rayignore"])
def test_both_ignore_files_count_at_every_level(folder, name):
    (folder / name).write_text("runs/\n")
    (folder / "data" / name).write_text("deep\n")
    ignores = sum((folder / at / name).stat().st_size for at in ("", "data"))
    assert preflight(folder).total == 3100 + ignores


def test_the_measure_is_what_ray_packs(folder, tmp_path):
    from ray._private.runtime_env.packaging import create_package

    (folder / ".rayignore").write_text("/runs\n*.bin\n!big.bin\n")
    create_package(str(folder), tmp_path / "upload.zip", include_gitignore=True)
    packed = [info for info in zipfile.ZipFile(tmp_path / "upload.zip").infolist() if not info.is_dir()]
    size = preflight(folder)
    assert (size.files, size.total) == (len(packed), sum(info.file_size for info in packed))


def test_too_large_an_upload_lists_the_largest_entries(folder):
    with pytest.raises(ValueError, match="must stay within") as error:
        preflight(folder, limit=8000)
    lines = str(error.value).splitlines()
    assert ".rayignore" in lines[0]
    assert [line.split()[-1] for line in lines[1:3]] == ["runs/result", "data/big.bin"]


def test_this_repository_sends_little_and_all_that_a_sweep_needs():
    sizes = _uploaded(ROOT)
    assert sum(sizes.values()) < 20 * MEBIBYTE
    assert not {".git", ".venv", "runs", "docs"} & {path.parts[0] for path in sizes}
    weights = [path.relative_to(ROOT) for path in (ROOT / "prx" / "embedded").rglob("*.safetensors")]
    configs = [path.relative_to(ROOT) for path in (ROOT / "sweeps" / "configs").glob("*.yaml")]
    assert weights
    assert configs
    assert {*weights, *configs} <= sizes.keys()


def test_a_folder_that_is_missing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="--working-dir must be an existing folder, got"):
        preflight(tmp_path / "absent")


def test_the_job_server_is_the_one_named_first(monkeypatch):
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert job_server(None) == DEFAULT_SERVER
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://there:1/")
    assert job_server(None) == "http://there:1"
    assert job_server("https://here:2") == "https://here:2"


def test_an_address_that_is_no_job_server_names_its_source(monkeypatch):
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    with pytest.raises(ValueError, match=r"RAY_ADDRESS must be the URL of a job server .* got head:6379"):
        job_server(None)


def test_a_job_server_that_does_not_answer_is_named(folder):
    with pytest.raises(ConnectError, match=r"no job server to use at http://127.0.0.1:9: .*refused"):
        submit(["true"], address="http://127.0.0.1:9", working_dir=folder, write=print)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["absent.yaml", "--store", "/store"], "FILE must be an existing sweep YAML, got absent.yaml"),
        ([__file__, "--store", "runs"], "--store must be an absolute path"),
        ([__file__, "--store", "/store", "--working-dir", "cluster"], "FILE must lie in --working-dir"),
    ],
)
def test_the_command_refuses_before_it_connects(arguments, text, monkeypatch):
    monkeypatch.chdir(ROOT)
    outcome = CliRunner().invoke(app, ["submit", *arguments])
    assert outcome.exit_code == 2
    assert text in outcome.stderr
