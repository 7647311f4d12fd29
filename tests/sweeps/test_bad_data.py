"""Data that cannot be used: one message with file, line, config path and rule; exit 2; nothing trained."""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prx.embedded.dataset import write_dataset
from sweeps.__main__ import main

SWEEP = """\
name: bad
base: embedded
axes: {alignment: [none]}
trial: {steps: 60, eval_every: 30}
set:
  data.num_train: 8
  data.num_reference: 80
  evaluation.num_samples: 80
"""


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """Eight training scenes in parquet."""
    folder = tmp_path_factory.mktemp("data") / "good"
    write_dataset(folder, num=8, seed=1)
    return folder


def refused(monkeypatch, capsys, tmp_path: Path, *lines: str) -> str:
    """Run the sweep with more settings; returns the one message."""
    file = tmp_path / "bad.yaml"
    file.write_text(SWEEP + "".join(f"  {line}\n" for line in lines), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["prx-sweep", "run", str(file), "--store", str(tmp_path / "store")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert not list((tmp_path / "store").rglob("checkpoints"))
    message = capsys.readouterr().err.strip()
    assert message.count("error:") == 1
    return message.replace(str(tmp_path), "TMP")


def changed(good: Path, folder: Path, **columns: list) -> Path:
    """Copy the data with columns replaced; None takes one out."""
    table = pq.read_table(next(good.glob("*.parquet"))).to_pydict()
    folder.mkdir()
    pq.write_table(pa.table({k: v for k, v in (table | columns).items() if v is not None}), folder / "part.parquet")
    return folder


def test_a_missing_folder(monkeypatch, capsys, tmp_path):
    message = refused(monkeypatch, capsys, tmp_path, f"data.train: {tmp_path}/nowhere")
    assert message.startswith("error: TMP/bad.yaml:9: data.train: must be an existing folder of parquet files")
    assert message.endswith("got 'TMP/nowhere'")


def test_a_corrupt_file(monkeypatch, capsys, tmp_path, good):
    folder = changed(good, tmp_path / "corrupt")
    (folder / "part.parquet").write_bytes((folder / "part.parquet").read_bytes()[:-9])
    message = refused(monkeypatch, capsys, tmp_path, f"data.train: {folder}")
    assert message.startswith(
        "error: TMP/bad.yaml:9: data.train: TMP/corrupt/part.parquet is not a readable parquet file"
    )


def test_a_missing_column(monkeypatch, capsys, tmp_path, good):
    folder = changed(good, tmp_path / "narrow", caption_long=None)
    message = refused(monkeypatch, capsys, tmp_path, f"data.train: {folder}")
    assert "bad.yaml:9: data.train: TMP/narrow/part.parquet has no such column" in message
    assert "got 'caption_long'" in message
    assert "caption_short" in message


def test_an_unreadable_image(monkeypatch, capsys, tmp_path, good):
    images = pq.read_table(next(good.glob("*.parquet")))["image"].to_pylist()
    folder = changed(good, tmp_path / "torn", image=[*images[:3], b"no image", *images[4:]])
    message = refused(monkeypatch, capsys, tmp_path, f"data.train: {folder}")
    assert message.startswith("error: TMP/bad.yaml:9: data.train: TMP/torn/part.parquet, row 0 + 3: ")
    assert "not a readable image" in message


def test_too_few_rows(monkeypatch, capsys, tmp_path, good):
    folder = changed(good, tmp_path / "short")
    file = tmp_path / "bad.yaml"
    monkeypatch.setattr("tests.sweeps.test_bad_data.SWEEP", SWEEP.replace("num_train: 8\n", "num_train: 9\n"))
    message = refused(monkeypatch, capsys, tmp_path, f"data.train: {folder}")
    assert "data.train: 9 rows are asked for" in message
    assert file.is_file()


def test_too_few_samples_for_a_metric(monkeypatch, capsys, tmp_path, good):
    monkeypatch.setattr("tests.sweeps.test_bad_data.SWEEP", SWEEP.replace("num_samples: 80\n", "num_samples: 48\n"))
    message = refused(monkeypatch, capsys, tmp_path, f"data.train: {good}")
    assert "must be greater than 64 for fid" in message
    assert "got 48" in message
