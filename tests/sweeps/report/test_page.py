"""The page: it loads nothing, shows names as text, and says what the sweep found."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from PIL import Image

from sweeps.report import samples as grids
from sweeps.report.gather import gather
from sweeps.report.page import render, write_report
from sweeps.results import SweepFolder, TrialInfo, write_info
from tests.sweeps import stored
from tests.sweeps.simulated import frame_of, info_of


class Tags(HTMLParser):
    """Every tag with its attributes, every text, and the contents of script and style."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags, self.text, self.code, self._inside = [], [], {"script": [], "style": []}, ""
        self.feed(page)
        self.words = " ".join("".join(self.text).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._inside = tag if tag in self.code else ""

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        (self.code[self._inside] if self._inside else self.text).append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def foreign(tags):
    """List whatever a browser would fetch, run, or send somewhere."""
    found = []
    for name, attributes in tags.tags:
        for key, value in attributes.items():
            loads = key in {"src", "href", "action", "data", "poster", "srcset", "xlink:href", "formaction"}
            if key.startswith("on") or (loads and not (value or "").startswith(("data:", "#"))):
                found.append((name, key, value))
            if key == "style" and re.search(r"url\(|expression", value or ""):
                found.append((name, key, value))
        if name in {"iframe", "object", "embed", "base", "frame"}:
            found.append((name, "", ""))
    found += [("style", "", code) for code in tags.code["style"] if re.search(r"url\(|@import", code)]
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return stored.store_sweep(
        tmp_path_factory.mktemp("store"), pruned="repa_dinov3 · repa_e", failed="repa_dinov2 · repa_e"
    )


@pytest.fixture(scope="module")
def page(folder):
    return Tags(render(gather(folder)))


def test_it_loads_nothing_and_runs_only_its_own_script(page):
    assert foreign(page) == []
    (script,) = page.code["script"]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = [a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy
    assert "connect-src" not in policy
    assert "://" not in script


def test_the_check_sees_what_would_load():
    bad = '<img src="x.png"><a href="https://a"></a><p onclick="x"><style>@import "a";</style><i style="a:url(b)">'
    assert len(foreign(Tags(bad))) == 5


def test_question_answer_and_sections(page):
    assert "Which levels of alignment (none, repa_dinov2, repa_dinov3) and tokenizer (flux, repa_e)" in page.words
    assert "wins" in page.words
    assert re.search(r"repa_e \(−0\.[23]\d+ ± 0\.0\d+\)", page.words)
    assert "3 cells were stopped early" not in page.words
    headings = {attributes.get("id") for attributes in page.all("section")}
    assert {"answer", "board", "effects", "curves", "samples", "failures", "configs", "circumstances"} <= headings


def test_every_name_is_text_however_hostile(tmp_path):
    evil = '"><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7 * 7 }}'
    info = info_of(stored.cells(), range(2))
    trials = [replace(t, name=evil + t.name if not t.is_baseline else t.name) for t in info.trials]
    trials = [
        TrialInfo(**{**t.__dict__, "levels": {**t.levels, "tokenizer": evil + t.levels["tokenizer"]}}) for t in trials
    ]
    info = replace(info, trials=tuple(trials))
    frame = frame_of(info, lambda levels: 1.0 + len(levels["alignment"]) / 10, noise=0.01)
    frame["reason"] = evil
    folder = stored.store_sweep(tmp_path, info, frame, failed=trials[1].name)
    about = {"environment": {evil: evil}, "sweep_file": evil, "sweep_text": evil, "left_out": [[{"a": evil}, [evil]]]}
    (folder.root / "about.json").write_text(json.dumps(about))
    made = Tags(render(gather(folder)))
    assert foreign(made) == []
    assert len(made.code["script"]) == 1
    assert "alert(1)" not in made.code["script"][0]
    assert made.words.count("<script>alert(1)</script>") > 10
    assert "{{ 7 * 7 }}" in made.words


def test_cells_that_ended_early_are_marked_and_enter_no_effect(folder, page):
    material = gather(folder)
    assert "pruned at step 100 of 300" in dict(material.observed.left_out)["repa_dinov3 · repa_e"]
    assert len([a for a in page.all("path") if a.get("class") == "stop"]) == 2
    assert "Stopped early, compared where they stopped" in page.words
    assert len(material.effects.interactions) == 0
    assert "pairs cannot be told" in page.words


def test_failures_come_with_reason_and_traceback(page):
    assert "repa_dinov2 · repa_e (seed 0): failed at step 100" in page.words
    assert "NonFiniteError: repa_dinov2 · repa_e" in page.words


def test_configurations_show_their_difference_and_all_of_them(page):
    assert page.words.count("Copy the YAML") == 6
    diffs = [a for a in page.all("table") if a.get("class") == "diff"]
    assert len(diffs) == 5
    assert re.search(r"losses\.use\s*none\s*repa_dinov2", page.words)
    assert "losses: use: repa_dinov2" in page.words


def test_grids_lie_side_by_side_for_every_step(page):
    images = page.all("img")
    assert len(images) == 4 * 3 + 2  # two cells ended at the first of three boundaries
    assert sum("hidden" not in image for image in images) == 6
    content = base64.b64decode(images[0]["src"].removeprefix("data:image/webp;base64,"))
    assert Image.open(io.BytesIO(content)).size == (64, 64)
    (slider,) = [a for a in page.all("input") if a.get("id") == "step"]
    assert slider["data-steps"] == "100 200 300"


def test_pictures_are_made_small_enough_and_bounded(folder, monkeypatch, tmp_path):
    path = tmp_path / "step-00000100.png"
    stored.grid(path, 100, side=2000)
    uri = grids._uri(path, 0)
    assert Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).size == (grids.SIDE, grids.SIDE)
    path.write_bytes(path.read_bytes()[:60])
    assert grids._uri(path, 1) == ""
    path.write_bytes(b"no picture")
    assert grids._uri(path, 2) == ""
    monkeypatch.setattr(grids, "MOST_BYTES", 1)
    few = grids.samples(gather(folder))
    assert ([grid.name for grid in few.grids], few.without) == (["baseline"], 5)


def test_many_steps_are_thinned_to_a_few_with_the_last():
    assert grids._thinned(list(range(100, 4001, 100)))[-1] == 4000
    assert len(grids._thinned(list(range(100, 4001, 100)))) == grids.MOST_STEPS


def test_prompts_are_read_from_the_reference_and_missing_data_is_no_error(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"caption": ["a <b>", "c", "d", "e", "f"]}), tmp_path / "part-0.parquet")
    assert grids._first_texts(tmp_path, "caption", 3) == ("a <b>", "c", "d")
    assert grids._first_texts(tmp_path, "other", 3) == ()
    assert grids._first_texts(tmp_path / "nowhere", "caption", 3) == ()
    (tmp_path / "part-0.parquet").write_bytes(b"broken")
    assert grids._first_texts(tmp_path, "caption", 3) == ()


def test_a_sweep_without_results_yet_is_a_page_too(tmp_path):
    info = replace(info_of(stored.cells(), range(2)), name="new")
    folder = SweepFolder(tmp_path, "new")
    write_info(folder, info)
    made = Tags(render(gather(folder)))
    assert "12 pending" in made.words
    assert "No cell has reached step 300 yet." in made.words
    assert foreign(made) == []


@pytest.mark.parametrize("seeds", [[0], range(2)])
def test_a_baseline_that_failed_leaves_the_rest_readable(tmp_path, seeds):
    folder = stored.store_sweep(tmp_path, seeds=seeds, failed="baseline")
    made = Tags(render(gather(folder)))
    assert "Leaderboard" in made.words
    assert "repa_e" in made.words


def test_live_pages_may_ask_their_own_server_only(folder):
    made = Tags(render(gather(folder), live="version 7"))
    (policy,) = [a["content"] for a in made.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert "connect-src 'self'" in policy
    assert made.all("body") == [{"data-live": "version 7"}]


def test_written_whole_beside_the_results(folder):
    path = write_report(folder)
    assert path == folder.root / "report.html"
    assert path.read_text().rstrip().endswith("</html>")
    assert list(folder.root.glob("*.partial*")) == []
