"""The article as a sweep: its rows are cells, and its figures stand beside ours."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from prx.errors import ConfigError
from prx.yamlsource import parse_yaml
from sweeps.article import ArticleTable, matches, render_article, tables
from sweeps.benchmarks.synthetic import write_stand_ins
from sweeps.leaderboard import ranking
from sweeps.plan import Plan, make_plan
from sweeps.results import SweepFolder, SweepInfo, TrialInfo, read_info, write_info
from sweeps.session import sweep_info
from sweeps.spec import load_spec, parse_spec

CONFIGS = Path(__file__).parents[2] / "sweeps" / "configs"
PARTS = ["prx_part2", "prx_part2_embedded", "prx_part2_pixels", "prx_part2_pixels_embedded"]


@pytest.fixture
def models(monkeypatch, tmp_path):
    write_stand_ins(tmp_path)
    monkeypatch.chdir(tmp_path)


def planned(name: str) -> Plan:
    return make_plan(*load_spec(CONFIGS / f"{name}.yaml"))


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize("name", PARTS)
def test_every_row_of_the_article_is_a_cell(name):
    plan = planned(name)
    info = sweep_info(plan)
    table = tables()[info.article]
    assert [row.method for row in table.rows] == [row.method for row in table.rows if row in matches(info).values()]
    assert plan.dropped == ()
    assert matches(info)["baseline"].levels == {}


@pytest.mark.usefixtures("models")
def test_the_twins_have_the_same_cells():
    for one, two in (PARTS[:2], PARTS[2:]):
        first, second = planned(one), planned(two)
        assert [cell.name for cell in first.cells] == [cell.name for cell in second.cells]


@pytest.mark.usefixtures("models")
def test_the_baseline_is_the_articles():
    config = planned("prx_part2").cells[0].config
    optimizer = config.optimizer.model_dump()
    assert (config.steps, config.batch_size, config.grad_clip) == (100_000, 256, 0.2)
    assert optimizer == {"use": "adamw", "lr": 1e-4, "betas": [0.9, 0.95], "eps": 1e-15, "weight_decay": 0.0}
    assert (config.sampling.num_steps, config.sampling.guidance_scale) == (50, 3.5)


def test_without_the_models_there_is_one_line_for_each(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        planned("prx_part2")
    lines = str(caught.value).splitlines()
    named = ["t5gemma-2b-2b-ul2'", "dinov2-with-registers-large'", "dinov3-vitl16-pretrain-lvd1689m'"]
    assert len(lines) == len(named)
    for line, name in zip(lines, named, strict=True):
        assert f"{name}: config.json is missing" in line
        assert "hf download" in line
    assert "'repa_dinov2_stopped' of axes.alignment" in lines[1]


def test_article_figures_are_those_of_its_tables():
    latent, pixels = tables()["latent_256"], tables()["pixels_1024"]
    assert len(latent.rows) == 16
    found = {row.method: (row.fid, row.cmmd, row.dino_mmd, row.batches_per_second) for row in latent.rows}
    assert found["Baseline"] == (18.20, 0.41, 0.39, 3.95)
    assert found["REPA-E-VAE"] == (12.08, 0.26, 0.18, 3.39)
    assert found["Muon"] == (15.55, 0.36, 0.35, None)
    assert [row.batches_per_second for row in pixels.rows] == [1.33, 1.64, 1.89]
    for table in (latent, pixels):
        assert len({tuple(row.levels.items()) for row in table.rows}) == len(table.rows)
        assert all(set(row.levels) <= set(table.baseline) for row in table.rows)


ALSO = """\
name: small
base: embedded
axes:
  alignment: [none, repa_dinov2]
  tokenizer: [flux, repa_e]
design: add_one_in
also: [{alignment: repa_dinov2, tokenizer: repa_e}, {alignment: repa_dinov2}]
trial: {steps: 300, eval_every: 100}
"""


def errors(text: str) -> str:
    source = parse_yaml(text, "s.yaml")
    with pytest.raises(ConfigError) as caught:
        make_plan(parse_spec(source), source)
    return str(caught.value)


def test_also_adds_combinations_once():
    source = parse_yaml(ALSO, "s.yaml")
    plan = make_plan(parse_spec(source), source)
    assert [cell.name for cell in plan.cells] == ["baseline", "repa_dinov2", "repa_e", "repa_dinov2 · repa_e"]
    assert "s.yaml:7: also[0].tokenizer: must be one of flux, repa_e; got 'repa_f'" in errors(
        ALSO.replace("tokenizer: repa_e}", "tokenizer: repa_f}")
    )
    assert "s.yaml:7: also[1].aligment: must be one of alignment, tokenizer; got 'aligment'" in errors(
        ALSO.replace("{alignment: repa_dinov2}]", "{aligment: repa_dinov2}]")
    )
    assert "s.yaml:9: article: must be one of latent_256, pixels_1024; got 'latent'" in errors(
        ALSO + "article: latent\n"
    )


def info_of(cells: dict[str, dict[str, str]], article: str | None = "latent_256") -> SweepInfo:
    trials = tuple(TrialInfo(name, name, name, name == "baseline", 0, levels) for name, levels in cells.items())
    return SweepInfo("s", "cmmd", "min", 40, 10, tuple(cells["baseline"]), trials, article)


CELLS = {
    "baseline": {"alignment": "none", "tokenizer": "flux"},
    "repa_dinov3": {"alignment": "repa_dinov3", "tokenizer": "flux"},
    "strong": {"alignment": "repa_strong", "tokenizer": "flux"},
    "repa_dinov2 · repa_e": {"alignment": "repa_dinov2", "tokenizer": "repa_e"},
}


def test_cells_match_by_what_differs_from_the_articles_baseline():
    found = matches(info_of(CELLS))
    assert {name: row.method for name, row in found.items()} == {
        "baseline": "Baseline", "repa_dinov3": "REPA DINOv3", "repa_dinov2 · repa_e": "REPA-E-VAE"
    }  # fmt: skip
    assert matches(info_of(CELLS, article=None)) == {}
    other = {name: levels | {"tokenizer": "repa_e"} for name, levels in CELLS.items()}
    assert matches(info_of(other)) == {}
    assert matches(info_of({name: levels | {"teacher": "x"} for name, levels in CELLS.items()})) == {}


def frame(*rows: tuple[str, int, float]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"trial_id": name, "cell_id": name, "name": name, "seed": 0, "step": step, "cmmd": cmmd,
             "state": "complete", "reason": "", "replayed": False}
            for name, step, cmmd in rows
        ]
    )  # fmt: skip


@pytest.mark.parametrize("width", [80, 120])
def test_figures_stand_beside_ours_with_their_ratios(width):
    info = info_of(CELLS)
    done = (("baseline", 0.5), ("repa_dinov3", 0.25), ("strong", 0.1), ("repa_dinov2 · repa_e", 0.2))
    results = ranking(frame(*((name, 40, cmmd) for name, cmmd in done)), info)
    console = Console(width=width)
    with console.capture() as capture:
        console.print(render_article(results, info))
    text = capture.get()
    assert max(map(len, text.splitlines())) <= width
    lines = [line.split() for line in text.splitlines()]
    assert ["Baseline", "article", "18.2", "(1.00)", "0.41", "(1.00)", "0.39", "(1.00)", "3.95", "(1.00)"] in lines
    repa = ["REPA", "DINOv3", "article", "14.64", "(0.80)", "0.35", "(0.85)", "0.3", "(0.77)", "3.46", "(0.88)"]
    assert lines[lines.index(repa) + 1] == ["here", "-", "0.25", "(0.50)", "-", "-"]
    assert any(line[:3] == ["REPA-E-VAE", "article", "12.08"] for line in lines), "rounded it would be Flux2-AE's 12.07"
    assert "strong" not in text


def test_no_table_before_a_matching_cell_is_done():
    info = info_of(CELLS)
    assert render_article(ranking(frame(("baseline", 20, 0.5), ("strong", 40, 0.1)), info), info) is None


def test_the_table_is_remembered_with_the_sweep(tmp_path):
    info = info_of(CELLS)
    folder = SweepFolder(tmp_path, "s")
    write_info(folder, info)
    assert read_info(folder) == info
    assert isinstance(tables()["latent_256"], ArticleTable)
