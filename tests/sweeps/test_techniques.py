"""`prx-sweep techniques` and the benchmark of technique costs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from rich.cells import cell_len
from rich.console import Console

from prx import recipe, registry
from prx.config import parse_run_config
from prx.errors import UserError
from prx.interfaces import Choice, LogUniform, Uniform
from prx.yamlsource import Source
from sweeps import __main__ as cli
from sweeps.benchmarks import synthetic, techniques
from sweeps.catalogue import load_catalogue
from sweeps.techniques import find, known, levels, render_all, render_one, written

ROOT = Path(__file__).parents[2]


def shown(part, width: int) -> str:
    console = Console(width=width, no_color=True)
    with console.capture() as capture:
        console.print(part)
    return capture.get()


@pytest.mark.parametrize("width", [80, 120])
def test_the_list_names_everything_within_the_width(width):
    text = shown(render_all(), width)
    assert max(map(cell_len, text.splitlines())) <= width
    for kind, name in registry.TECHNIQUES:
        assert kind in text
        assert name in text
    for _, axis, level, _ in levels():
        assert axis in text
        assert level in text
    flat = " ".join(text.split())
    for item in known():
        assert all(rule in flat for rule in (*item.part.REQUIRES, *item.part.CONFLICTS))


def test_every_technique_has_a_line_and_a_source():
    for item in known():
        assert item.summary.endswith(".")
        assert 10 < len(item.summary) < 200, item.name
        assert item.part.SOURCE, item.name


def test_one_technique_in_full():
    text = " ".join(shown(render_one(find("sprint")), 80).split())
    assert "routing sprint" in text
    assert "path_drop: 0.1" in text
    assert "levels (embedded) routing: sprint, routing: sprint_finetuned" in text
    assert "arXiv:2510.21986" in text
    assert "teacher: required" in shown(render_one(find("repa")), 80)
    with pytest.raises(UserError, match=r"technique: must be one of .* \(did you mean 'irepa'\?\)"):
        find("irpea")


def test_ranges_are_written_as_yaml():
    assert written(LogUniform(1e-5, 0.01)) == "log_uniform [1e-05, 0.01]"
    assert written(Uniform(0.5, 1.0)) == "uniform [0.5, 1]"
    assert written(Choice(("a", 1))) == "{a, 1}"


def test_the_command_line(monkeypatch, capsys):
    for arguments, code, text in ((["repa"], 0, "loss repa"), (["rope"], 2, "error: technique: must be one of ")):
        monkeypatch.setattr(sys, "argv", ["prx-sweep", "techniques", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == code
        printed = capsys.readouterr()
        assert text in printed.out + printed.err


@pytest.fixture
def base(world, tmp_path):
    """The tiny run as a base, with random numbers instead of data."""
    path = tmp_path / "base.yaml"
    settings = world.settings(denoiser={"width": 32, "depth": 4, "heads": 2, "patch_size": 1})
    settings["data"]["train"] = "embedded:train"  # the embedded catalogue; nothing is read
    settings["optimizer"] = {"use": "adamw", "lr": 1e-3}
    path.write_text(yaml.safe_dump(settings))
    return str(path)


def test_costs_are_measured_without_data_or_weights(base, capsys, tmp_path):
    chosen = ("alignment=haste_dinov2", "objective=contrastive", "routing=sprint", "alignment=irepa_dinov3 ema=ema")
    found = techniques.measure(base, 2, tmp_path / "cache", synthetic=True, peak_tflops=0.1, levels=chosen)
    assert [item.levels for item in found] == [
        {"alignment": "haste_dinov2"}, {"objective": "contrastive"}, {"routing": "sprint"},
        {"alignment": "irepa_dinov3", "ema": "ema"},
    ]  # fmt: skip
    assert all(len(item.ratios) == 2 and min(item.ratios) > 0 for item in found)
    assert found[2].tokens == "16, 4 in 1..2"
    assert found[2].flops < found[1].flops < found[0].flops
    printed = capsys.readouterr().out
    assert "haste_dinov2" in printed
    assert "0.95" in printed  # the article's ratio for the contrastive term
    assert not (tmp_path / "cache").exists()


def test_levels_that_the_base_cannot_have_are_named(base, capsys, tmp_path):
    (tmp_path / "zero.yaml").write_text("base: base.yaml\ninfrastructure: {zero_stage: 0}\n")
    found = techniques.measure(
        str(tmp_path / "zero.yaml"),
        2,
        tmp_path,
        synthetic=True,
        levels=["precision=bf16_pure", "objective=contrastive"],
    )
    assert [item.levels for item in found] == [{"objective": "contrastive"}]
    assert "left out: precision=bf16_pure: " in capsys.readouterr().out


def test_what_needs_pictures_or_weights_is_left_out(base, capsys, tmp_path):
    end_to_end = "tokenizer=repa_e_end_to_end alignment=repa_dinov2"
    assert techniques.measure(base, 2, tmp_path, synthetic=True, levels=[end_to_end]) == []
    assert "a tokenizer that is trained needs pictures and weights" in " ".join(capsys.readouterr().out.split())


def test_the_contrastive_term_multiplies_nothing():
    """So it costs what a few element-wise operations on latents cost, far below 2 % of a step."""
    source = techniques.load_base("embedded")
    plain = parse_run_config(source.data)
    away = parse_run_config(source.data | {"losses": {"contrastive": {"use": "contrastive"}}})
    taught = parse_run_config(
        source.data | {"losses": {"repa": {"use": "repa", "teacher": "embedded:dinov2", "layer": 1}}}
    )
    assert techniques.flops(away) == techniques.flops(plain) < techniques.flops(taught)


def test_unknown_levels_are_refused(base, tmp_path):
    with pytest.raises(UserError, match=r"--level must be AXIS=LEVEL of the catalogue; .*'teacher'"):
        techniques.measure(base, 2, tmp_path, synthetic=True, levels=["teacher=none"])
    with pytest.raises(UserError, match=r"--level routing=: must be one of none, tread, .* got 'tred'"):
        techniques.measure(base, 2, tmp_path, synthetic=True, levels=["routing=tred"])


def test_costs_with_warm_caches(base, world, tmp_path):
    Path(base).write_text(yaml.safe_dump(world.settings()))
    found = techniques.measure(base, 2, tmp_path / "cache", levels=["optimizer=muon"], changes={"grad_clip": None})
    assert len(found[0].seconds) == 2
    assert any((tmp_path / "cache").iterdir())


def test_the_usual_levels_are_those_of_the_catalogues():
    for name in ("embedded", "real"):
        catalogue = load_catalogue(name, Source(None))
        assert list(techniques._offered(catalogue)) == list(techniques.LEVELS)


def test_flops_are_those_of_the_article_s_model(tmp_path):
    """437 GFLOP an image forward, and a backward pass of twice that, but for frozen captions."""
    synthetic.write_stand_ins(tmp_path)
    config = parse_run_config(
        synthetic.stood_in(techniques.load_base("prx_1b_256").data, tmp_path)
        | {"batch_size": 4, "infrastructure": {"zero_stage": 0, "micro_batch": 2}}
    )
    assert recipe.problems(config) == []
    assert techniques.flops(config) / 4 / 3 == pytest.approx(437e9, rel=0.05)


def test_a_random_batch_has_the_shapes_of_a_real_one(world):
    from prx.batches import Batches

    losses = {"repa": world.repa(), "contrastive": {"use": "contrastive"}}
    config = world.config(losses=losses, routing={"use": "tread"})
    module = recipe.build(config)
    real = Batches(config, world.cache, module).batch(0)
    random = synthetic.batch_of(config, module, torch.device("cpu"))
    for name in ("clean", "noise", "t", "kept", "unconditional"):
        assert getattr(real, name).shape == getattr(random, name).shape, name
        assert getattr(real, name).dtype == getattr(random, name).dtype, name
    assert random.text.shape == (8, 8, real.text.shape[2])
    for name in ("targets", "partners"):
        first, second = getattr(real, name), getattr(random, name)
        assert {key: value.shape for key, value in first.items()} == {k: v.shape for k, v in second.items()}


WITHOUT_RAY = """
import sys
from sweeps.benchmarks.__main__ import app
sys.argv = ["benchmarks", "techniques", "--base", sys.argv[1], "--synthetic", "--rounds", "2",
            "--level", "objective=contrastive"]
try:
    app()
except SystemExit as stop:
    assert not stop.code, stop.code
print("unwanted:", sorted({"ray", "optuna", "wandb", "torchvision"} & set(sys.modules)))
"""


def test_costs_are_measured_on_a_machine_without_ray(base):
    command = [sys.executable, "-W", "ignore", "-c", WITHOUT_RAY, base]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert "unwanted: []" in done.stdout
