"""The command, the other forms, the server, the writer beside a run."""

from __future__ import annotations

import http.client
import logging
import sys
import threading
import time
from types import SimpleNamespace

import pandas as pd
import pytest

from prx.errors import UserError
from sweeps import __main__ as cli
from sweeps.ledger import Event
from sweeps.report import about
from sweeps.report.serve import ReportServer
from sweeps.report.writer import ReportWriter
from sweeps.results import SweepFolder, read_results
from tests.sweeps import fakes, stored


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("store")
    stored.store_sweep(path, pruned="repa_dinov3 · repa_e")
    return path


def command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["prx-sweep", "report", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code


def test_the_command_writes_the_page_and_prints_the_table(monkeypatch, capsys, store):
    assert command(monkeypatch, "simulated", "--store", store) == 0
    printed = capsys.readouterr().out
    assert " wins: " in printed
    assert f"report: {store}/sweeps/simulated/report.html" in printed


def test_open_opens_what_was_written(monkeypatch, store, tmp_path):
    opened = []
    monkeypatch.setattr("sweeps.report.command.webbrowser.open", opened.append)
    assert command(monkeypatch, "simulated", "--store", store, "--out", tmp_path / "a" / "b.html", "--open") == 0
    assert opened == [(tmp_path / "a" / "b.html").as_uri()]
    assert (tmp_path / "a" / "b.html").read_text().startswith("<!doctype html>")


def test_tables_come_back_as_they_are_stored(monkeypatch, store, tmp_path):
    stored_table = read_results(SweepFolder(store, "simulated").results)
    for form, read in (("csv", pd.read_csv), ("parquet", pd.read_parquet)):
        out = tmp_path / f"results.{form}"
        assert command(monkeypatch, "simulated", "--store", store, "--format", form, "--out", out) == 0
        found = read(out)
        assert list(found) == list(stored_table)
        assert found["cmmd"].tolist() == pytest.approx(stored_table["cmmd"].tolist())


def test_markdown_has_the_answer_and_a_row_a_cell(monkeypatch, store, tmp_path):
    out = tmp_path / "answer.md"
    assert command(monkeypatch, "simulated", "--store", store, "--format", "md", "--out", out) == 0
    lines = out.read_text().splitlines()
    assert lines[0] == "# simulated"
    assert any(line.startswith("- **Best**: repa\\_dinov2 · repa\\_e wins") for line in lines)
    start = next(i for i, line in enumerate(lines) if line.startswith("| Method "))
    rows = lines[start : lines.index("", start)]
    assert len(rows) == 2 + 6
    assert {line.count(" | ") for line in rows} == {rows[0].count(" | ")}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "sweeps/nothing: holds no sweep"),
        (["simulated", "--format", "pdf"], "--format: must be one of"),
        (["simulated", "--serve", "--port", "99999"], "--port: 99999 cannot be used"),
        (["simulated", "--out", "/proc/nowhere/report.html"], "--out: /proc/nowhere/report.html cannot be written"),
    ],
)
def test_what_cannot_be_reported_is_one_message(monkeypatch, capsys, store, arguments, message):
    assert command(monkeypatch, *arguments, "--store", store) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error


@pytest.fixture
def server(tmp_path):
    folder = stored.store_sweep(tmp_path)
    with ReportServer(folder, 0) as made:
        thread = threading.Thread(target=made.serve_forever, daemon=True)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def ask(server, path, host=None):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=30)
    connection.request("GET", path, headers={"Host": host} if host else {})
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def test_the_server_renews_its_page_when_results_change(server):
    status, page = ask(server, "/")
    assert (status, "data-live" in page, "repa_dinov2 · repa_e" in page) == (200, True, True)
    before = ask(server, "/version")
    assert before == ask(server, "/version")
    assert server.page() is server.page()
    frame = read_results(server.folder.results)
    frame[frame["alignment"] == "none"].to_parquet(server.folder.results)
    assert ask(server, "/version") != before
    assert "repa_dinov2 · repa_e</th>" not in ask(server, "/")[1]


def test_the_server_answers_its_own_host_and_paths_only(server):
    assert ask(server, "/", host="evil.example")[0] == 403
    assert ask(server, "/../../etc/passwd")[0] == 404
    assert server.server_address[0] == "127.0.0.1"


def test_a_taken_port_is_said(server):
    with pytest.raises(UserError, match=r"--port: .* cannot be used"):
        ReportServer(server.folder, server.server_address[1])


def event(kind):
    return Event(kind, SimpleNamespace(), 0.0)


def wait_until(condition):
    for _ in range(500):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it never happened")


def test_the_writer_makes_one_page_of_many_ends_and_a_last_one(tmp_path):
    pages, release = [], threading.Event()

    def write(folder, running):
        pages.append(running)
        if running:
            release.wait(5)

    with ReportWriter(SweepFolder(tmp_path, "x"), print, write) as writer:
        writer.event(event("boundary"))
        writer.event(event("progress"))
        assert pages == []
        for _ in range(100):
            writer.event(event("complete"))
        wait_until(lambda: pages)
        for _ in range(100):
            writer.event(event("pruned"))
        release.set()
    assert pages[0] is True
    assert pages[-1] is False
    assert len(pages) <= 3


def test_a_page_that_cannot_be_made_stops_nothing_and_is_said_once(tmp_path, caplog):
    said = []

    def write(folder, running):
        raise RuntimeError("no page today")

    with caplog.at_level(logging.ERROR), ReportWriter(SweepFolder(tmp_path, "x"), said.append, write) as writer:
        writer.event(event("failed"))
        wait_until(lambda: said)
    assert said == ["the report could not be written (RuntimeError: no page today); see the log"]
    assert [record.message for record in caplog.records] == ["the report could not be written"] * 2


def test_circumstances_are_written_down_and_read_back(tmp_path):
    folder = SweepFolder(tmp_path, "fake")
    about.record(fakes.make_plan("good-1"), folder)
    found = about.read(folder)
    assert found.environment["python"] == sys.version.split()[0]
    assert {"torch", "CPU", "GPU"} <= found.environment.keys()
    assert about.read(SweepFolder(tmp_path, "other")) == about.About()
