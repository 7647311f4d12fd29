"""The report in headless Chromium: no console error, no request, no sideways scrolling, and its controls work."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import replace

import pytest

from sweeps.report.gather import gather
from sweeps.report.page import render, write_report
from sweeps.results import SweepFolder
from tests.sweeps import stored
from tests.sweeps.simulated import also_measured, frame_of, info_of, measured

pytestmark = pytest.mark.browser
QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-default-apps",
    "--disable-extensions",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
    "--hide-scrollbars",
    "--enable-logging=stderr",
    "--virtual-time-budget=6000",
]
HARNESS = """
<script>
addEventListener("load", () => {
  const table = document.getElementById("leaderboard");
  const names = () => [...table.tBodies[0].rows].map((row) => row.cells[0].textContent.trim());
  const found = { width: document.documentElement.scrollWidth - innerWidth, before: names() };
  const heads = [...table.querySelectorAll("thead button")];
  heads[1].click(); found.up = names();
  heads[1].click(); found.down = names();
  const filter = document.getElementById("filter");
  filter.value = "dinov3"; filter.dispatchEvent(new Event("input"));
  found.filtered = [...table.tBodies[0].rows].filter((r) => !r.hidden).length;
  const slider = document.getElementById("step");
  slider.value = "0"; slider.dispatchEvent(new Event("input"));
  found.steps = [...document.querySelectorAll(".grids img:not([hidden])")].map((i) => i.dataset.step);
  found.images = [...document.images].every((i) => i.complete && i.naturalWidth > 0);
  document.body.dataset.found = JSON.stringify(found);
});
</script>
"""
RENEWED = """
<script>
const first = !sessionStorage.getItem("seen");
sessionStorage.setItem("seen", "1");
window.fetch = async () => new Response(first ? "the next one" : "this one");
addEventListener("load", () => {
  const table = document.getElementById("leaderboard"), heads = [...table.querySelectorAll("thead th")];
  const filter = document.getElementById("filter"), slider = document.getElementById("step");
  const folded = [...document.querySelectorAll("#configs details")];
  if (first) {
    heads[1].querySelector("button").click(); heads[1].querySelector("button").click();
    filter.value = "dinov3"; filter.dispatchEvent(new Event("input"));
    slider.value = "1"; slider.dispatchEvent(new Event("input"));
    folded[1].open = true;
    return;
  }
  document.body.dataset.found = JSON.stringify({
    sorted: heads.map((head) => head.getAttribute("aria-sort")).slice(0, 3), filter: filter.value,
    rows: [...table.tBodies[0].rows].filter((row) => !row.hidden).length,
    step: document.getElementById("step-label").textContent, open: folded.map((one) => one.open),
  });
});
</script>
"""


@pytest.fixture(scope="module")
def chromium():
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert found, "these tests need Chromium: apt-get install chromium"
    return found


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    info = replace(measured(info_of(stored.cells(), range(3))), name="looked-at", price_per_device_hour=2.5)
    info = replace(info, objectives={"cmmd": "min", "batches_per_second": "max"}, article="latent_256")
    frame = frame_of(info, stored.truth, noise=0.01, seed_noise=0.05)
    frame = also_measured(frame, "guidance_scale=2,weights=ema", lambda levels: 1.0, noise=0.01)
    folder = stored.store_sweep(
        tmp_path_factory.mktemp("store"), info, frame, pruned="repa_dinov3 · repa_e", failed="repa_dinov2 · repa_e"
    )
    return write_report(folder)


def drive(page, harness, target):
    """Put a script into a page; gives where."""
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text())
    target.write_text(text.replace("<script>", harness + "<script>", 1))
    return target


def found_by(dom):
    return json.loads(html.unescape(re.search(r'data-found="([^"]*)"', dom).group(1)))


def look(chromium, page, tmp_path, width):
    """Load a page; gives its DOM after its scripts ran, what went to the console, and every address asked for."""
    log = tmp_path / "net.json"
    command = [chromium, *QUIET, f"--user-data-dir={tmp_path / 'profile'}", f"--log-net-log={log}",
               f"--window-size={width},900", "--dump-dom", page.as_uri()]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    text = log.read_text()
    events = json.loads(text if text.rstrip().endswith("}") else text.rstrip().rstrip(",") + "]}")["events"]
    # The browser asks its makers for updates on its own account: such requests have no page as their origin.
    params = [event["params"] for event in events if "initiator" in event.get("params", {})]
    asked = {found["url"] for found in params if found["initiator"] != "not an origin"}
    return done.stdout, console, {url for url in asked if not url.startswith(("file:", "data:", "chrome:"))}


@pytest.mark.parametrize("width", [1280, 390])
def test_it_opens_without_an_error_or_a_request(chromium, page, tmp_path, width):
    dom, console, asked = look(chromium, page, tmp_path, width)
    for section in ("board", "settings", "curves", "article"):
        assert f'<section id="{section}">' in dom
    assert "Both goals" in dom
    assert "money, at 2.5 a device-hour" in dom
    assert console == []
    assert asked == set()


def test_the_check_sees_errors_and_requests(chromium, page, tmp_path):
    bad = tmp_path / "bad.html"
    bad.write_text('<script>nothing.here()</script><img src="http://127.0.0.1:9/x.png">')
    _, console, asked = look(chromium, bad, tmp_path, 1280)
    assert any("nothing is not defined" in line for line in console)
    assert asked == {"http://127.0.0.1:9/x.png"}


@pytest.mark.parametrize("width", [1280, 500])  # headless Chromium makes no window narrower than 500
def test_its_controls_work(chromium, page, tmp_path, width):
    dom, console, _ = look(chromium, drive(page, HARNESS, tmp_path / "driven.html"), tmp_path, width)
    assert console == []
    found = found_by(dom)
    assert found["width"] <= 0
    assert found["up"][:4] == found["down"][:4][::-1]
    assert found["up"][4:] == found["down"][4:] == ["repa_dinov3 · repa_e pruned", "repa_dinov2 · repa_e failed"]
    assert sorted(found["up"]) == sorted(found["before"])
    assert found["filtered"] == 2
    assert found["steps"] == ["100"] * 6
    assert found["images"] is True


def test_a_page_that_renews_itself_keeps_what_its_reader_did(chromium, page, tmp_path):
    live = tmp_path / "live.html"
    live.write_text(render(gather(SweepFolder(page.parents[2], page.parent.name)), live="this one"))
    dom, console, _ = look(chromium, drive(live, RENEWED, live), tmp_path, 1280)
    assert console == []
    assert found_by(dom) == {
        "sorted": [None, "descending", None],
        "filter": "dinov3",
        "rows": 2,
        "step": "200",
        "open": [False, True, False, False, False, False],
    }
