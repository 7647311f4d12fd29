"""Export to diffusers: the folder draws in another process what our own sampler draws, or is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import prx.__main__ as command
from prx import checkpoint, recipe
from prx.config import RunConfig, parse_run_config
from prx.errors import ConfigError, UserError
from prx.export import export, refusals, scheduler
from prx.sampling import PromptBatch, draw
from prx.techniques.velocity import Velocity
from prx.text import TextEncoder
from prx.train_step import TrainStep
from prx.trainer import checkpoints
from tests.equivalence.test_workers import STEPS, run_two, written
from tests.helpers import randomise, running, weights

CPU = torch.device("cpu")
PROMPTS = ["a red circle on grey", "blue square", "green"]
PIXELS = {"tokenizer": {"use": "pixels"}, "denoiser": {"width": 32, "depth": 2, "heads": 2, "patch_size": 4}}
CLEAN = {"use": "x_prediction", "shift": 3.0, "noise_scale": 2.0}
CASES = {
    "baseline": {},
    "shifted": {"objective": {"use": "velocity", "shift": 3.0}, "sampling": {"num_steps": 7, "guidance_scale": 3.5}},
    "unguided": {"sampling": {"num_steps": 3, "guidance_scale": 1.0}},
    "no shift factor": {"tokenizer": "no_shift"},
    "dc_ae": {"tokenizer": "dc"},
    "vec": {"denoiser": {"width": 32, "depth": 2, "heads": 2, "patch_size": 1, "resolution": "vec"}},
    "pixels": PIXELS | {"objective": CLEAN, "sampling": {"num_steps": 8, "guidance_scale": 2.0}},
}

SAMPLE = """
import sys
import torch
import diffusers
from diffusers import DiffusionPipeline
diffusers.utils.logging.disable_progress_bar()
drawn = {}
for name, given in torch.load(sys.argv[1]).items():
    pipe = DiffusionPipeline.from_pretrained(given["folder"], local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    wanted = {"num_inference_steps": given["num_steps"], "guidance_scale": given["scale"]}
    if hasattr(pipe, "text_preprocessor"):  # cleaning needs ftfy, which is no dependency of ours
        pipe.text_preprocessor.basic_clean = str.strip
        sys.modules[type(pipe).__module__]._basic_clean = str.strip
        wanted["skip_text_cleaning"] = True
    if type(pipe).__name__ == "PRXPixelPipeline":
        wanted.pop("skip_text_cleaning")
    drawn[name] = {"class": type(pipe).__name__}
    for kind in ("latent", "np"):
        found = [
            pipe(prompt=prompt, latents=noise[None].clone(), output_type=kind, use_resolution_binning=False,
                 height=16, width=16, **wanted).images
            for prompt, noise in zip(given["prompts"], given["noise"])
        ]
        drawn[name][kind] = torch.cat([torch.as_tensor(part) for part in found])
torch.save(drawn, sys.argv[2])
"""


def configured(world, **changes) -> RunConfig:
    """Give a run of the tiny world; a tokenizer may be named by its folder."""
    if isinstance(changes.get("tokenizer"), str):
        folder = changes["tokenizer"]
        changes["tokenizer"] = {"use": "autoencoder", "path": str(world.root / folder), "sample": folder != "dc"}
    return parse_run_config(world.settings(**changes))


def untrained(config: RunConfig) -> TrainStep:
    module = recipe.build(config)
    randomise(module)
    return module.eval()


def write_tokenizers(world) -> None:
    """Add a KL autoencoder without a shift, which is diffusers' default."""
    from diffusers import AutoencoderKL

    from tests.tiny import CONV

    torch.manual_seed(3)
    AutoencoderKL(**CONV, latent_channels=4, scaling_factor=0.7).save_pretrained(world.root / "no_shift")


def start(config: RunConfig, module: TrainStep) -> PromptBatch:
    """Encode the prompts and draw their noise."""
    encoder = TextEncoder(config.text.encoder, config.text.max_tokens, CPU)
    length = config.text.max_tokens
    text, null = encoder.encode(PROMPTS, length), encoder.encode([""] * len(PROMPTS), length)
    shape = recipe.shape_of(config)
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(len(PROMPTS), shape.channels, shape.latent_size, shape.latent_size, generator=generator)
    return PromptBatch(torch.arange(len(PROMPTS)), *text, *null, noise)


@pytest.fixture(scope="module")
def drawn(world, tmp_path_factory):
    """Export every case and sample each twice: here by our sampler, and by diffusers in one new process."""
    root = tmp_path_factory.mktemp("export")
    write_tokenizers(world)
    given, ours = {}, {}
    for name, changes in CASES.items():
        config = configured(world, **changes)
        module, folder = untrained(config), root / name
        export(config, module, folder, "| metric | value |")
        prompts = start(config, module)
        with torch.no_grad():
            latents = draw(module, prompts, config.sampling)
            images = recipe.tokenizer(config.tokenizer, CPU).decode(latents)
        ours[name] = {"latent": latents, "np": (images / 2 + 0.5).permute(0, 2, 3, 1)}
        given[name] = {
            "folder": str(folder), "prompts": PROMPTS, "noise": prompts.noise * module.objective.noise_scale,
            "num_steps": config.sampling.num_steps, "scale": config.sampling.guidance_scale,
        }  # fmt: skip
    torch.save(given, root / "given.pt")
    command = [sys.executable, "-W", "ignore", "-c", SAMPLE, str(root / "given.pt"), str(root / "drawn.pt")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return ours, torch.load(root / "drawn.pt"), root


@pytest.mark.parametrize("name", CASES)
def test_diffusers_draws_what_our_sampler_draws(drawn, name):
    ours, theirs, _ = drawn
    assert theirs[name]["class"] == ("PRXPixelPipeline" if name == "pixels" else "PRXPipeline")
    for kind in ("latent", "np"):
        expected = ours[name][kind]
        assert expected.std() > 0.01
        torch.testing.assert_close(theirs[name][kind], expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(theirs[name]["latent"][0], theirs[name]["latent"][1], atol=1e-2)


def test_folder_holds_safetensors_only_and_a_card(drawn):
    _, _, root = drawn
    folder = root / "baseline"
    kinds = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert kinds == {".json", ".safetensors", ".md", ".yaml"}
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: diffusers\n")
    assert "| metric | value |" in card
    assert "num_inference_steps=2, guidance_scale=2" in card
    settings = yaml.safe_load(card.split("```yaml\n")[1].split("```")[0])
    assert settings["denoiser"]["width"] == 32
    index = json.loads((folder / "model_index.json").read_text())
    assert index["transformer"] == ["diffusers", "PRXTransformer2DModel"]


@pytest.mark.parametrize(("shift", "steps", "bound"), [(1.0, 1, 0), (1.0, 28, 0), (3.0, 50, 2e-7), (0.7, 50, 4e-4)])
def test_scheduler_has_the_samplers_times(shift, steps, bound):
    flow = Velocity(Velocity.Config(use="velocity", shift=shift))
    made = scheduler(flow, steps)
    made.set_timesteps(steps)
    assert made.sigmas.shape == (steps + 1,)
    torch.testing.assert_close(made.sigmas, flow.schedule(steps), rtol=0, atol=max(bound, 1e-7))
    torch.testing.assert_close(made.timesteps / made.config.num_train_timesteps, made.sigmas[:-1])


REFUSED = {
    "objective": ({"objective": {"use": "x_prediction"}, "sampling": {"num_steps": 2}}, "unlike 'x_prediction'"),
    "objective.noise_scale": ({"objective": {"use": "velocity", "noise_scale": 2.0}}, "noise of scale 1, got 2.0"),
    "tokenizer": ({"tokenizer": "flux2"}, "AutoencoderKLFlux2 normalises every channel"),
    "denoiser.resolution": (
        {"denoiser": {"width": 32, "depth": 2, "heads": 2, "patch_size": 1, "resolution": "token"}}, "only `vec`",
    ),
    "sampling.guidance_scale": ({"sampling": {"num_steps": 2, "guidance_scale": 0.5}}, "at least 1, got 0.5"),
    "losses.contrastive": (
        {"losses": {"contrastive": {"use": "contrastive", "correct_sampling": True}}}, "cannot correct the velocity",
    ),
    "routing": (
        {"routing": {"use": "sprint", "start": 1, "end": 1},
         "denoiser": {"width": 32, "depth": 3, "heads": 2, "patch_size": 1}},
        "'sprint' changes tokens",
    ),
}  # fmt: skip


@pytest.mark.parametrize("path", REFUSED)
def test_what_diffusers_would_draw_otherwise_is_refused(world, tmp_path, path):
    changes, reason = REFUSED[path]
    config = configured(world, **changes)
    with pytest.raises(ConfigError) as stopped:
        export(config, untrained(config), tmp_path / "out")
    assert [problem.path for problem in stopped.value.problems] == [path]
    assert reason in str(stopped.value)
    assert list(tmp_path.iterdir()) == []


def test_velocity_in_pixels_and_a_late_last_step_fit_no_pipeline(world):
    config = configured(world, **PIXELS)
    assert [problem.path for problem in refusals(config, untrained(config))] == ["objective"]
    late = configured(world, **PIXELS, objective={"use": "x_prediction"}, sampling={"num_steps": 50})
    assert [problem.path for problem in refusals(late, untrained(late))] == ["sampling.num_steps"]


def test_a_tokenizer_trained_with_the_run_fits_no_pipeline(world):
    tokenizer = {"use": "repa_e", "path": str(world.root / "kl"), "gan_width": 8, "gan_depth": 2}
    config = configured(world, tokenizer=tokenizer, losses={"repa": world.repa()})
    found = list(refusals(config, untrained(config)))
    assert [problem.path for problem in found] == ["tokenizer"]
    assert "the normalisation of every channel" in found[0].message


def test_routing_guidance_is_refused_and_its_denoiser_is_not(world):
    denoiser = {"width": 32, "depth": 3, "heads": 2, "patch_size": 1}
    routing = {"use": "tread", "start": 1, "end": 1}
    sampling = {"num_steps": 2, "guidance_scale": 2.0, "guidance": "routing"}
    config = configured(world, routing=routing, denoiser=denoiser, sampling=sampling)
    assert [problem.path for problem in refusals(config, untrained(config))] == ["sampling.guidance"]
    config = configured(world, routing=routing, denoiser=denoiser)
    assert list(refusals(config, untrained(config))) == []


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_checkpoint_gives_its_weights_at_any_stage(world, tmp_path, stage):
    with running(world, tmp_path, zero_stage=stage, losses={"repa": world.repa()}) as trainer:
        trainer.advance(2)
        trainer.save()
        expected, config = weights(trainer), trainer.config
    module = checkpoint.read_module(config, checkpoints(tmp_path)[2])
    found = dict(module.named_parameters())
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.slow
def test_a_checkpoint_of_two_workers_is_read_by_one(world, tmp_path):
    file = written(world, tmp_path / "two.yaml", workers=2, zero_stage=3)
    first, _ = run_two(file, world.cache, tmp_path)
    module = checkpoint.read_module(parse_run_config(yaml.safe_load(file.read_text())), checkpoints(tmp_path)[STEPS])
    found = dict(module.named_parameters())
    assert found.keys() == first["weights"].keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in first["weights"].items())


def test_a_checkpoint_gives_the_average_where_the_sampler_uses_it(world, tmp_path):
    sampling = {"num_steps": 2, "weights": "ema"}
    with running(world, tmp_path, ema={"every": 1, "decay": 0.5}, sampling=sampling) as trainer:
        trainer.advance(2)
        trainer.save()
        plain, config, average = weights(trainer), trainer.config, trainer.engine.ema.state()
    found = checkpoint.read_module(config, checkpoints(tmp_path)[2]).state_dict()
    assert all(torch.equal(found[name], average[name]) for name in average)
    assert any(not torch.equal(found[name], plain[name]) for name in plain)


def test_a_checkpoint_of_another_model_is_named(world, tmp_path):
    with running(world, tmp_path) as trainer:
        trainer.advance(1)
        trainer.save()
    other = configured(world, denoiser={"width": 64, "depth": 2, "heads": 2, "patch_size": 1})
    with pytest.raises(UserError, match="is no checkpoint of this configuration"):
        checkpoint.read_module(other, checkpoints(tmp_path)[1])
    with pytest.raises(UserError, match="is no complete checkpoint"):
        checkpoint.read_module(other, tmp_path / "nowhere")
    for file in checkpoints(tmp_path)[1].rglob("*.pt"):
        file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"\.pt is damaged .* or name another step"):
        checkpoint.read_module(configured(world), checkpoints(tmp_path)[1])


def test_command_line_exports_the_newest_step(world, tmp_path, monkeypatch, capsys):
    file, run = tmp_path / "run.yaml", tmp_path / "run"
    file.write_text(yaml.safe_dump(world.settings(steps=2)))
    folder = tmp_path / "pipeline"
    for words in (["train", str(file), "--out", str(run), "--cache", str(world.cache)],
                  ["export", str(run), "--out", str(folder)]):  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["prx", *words])
        with pytest.raises(SystemExit) as stopped:
            command.main()
        assert not stopped.value.code
    from diffusers import PRXTransformer2DModel

    saved = PRXTransformer2DModel.from_pretrained(folder / "transformer").state_dict()
    module = checkpoint.read_module(configured(world, steps=2), checkpoints(run)[2])
    assert all(torch.equal(saved[name], tensor) for name, tensor in module.denoiser.state_dict().items())
    assert "Weights after 2 steps." in (folder / "README.md").read_text()
    for words, rule in (
        (["--step", "7"], "no checkpoint of step 7; there are [2]"), ([], "exists; choose another"),
        (["--out", str(file / "x")], "x cannot be written (Not a directory)"),
    ):  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["prx", "export", str(run), "--out", str(folder), *words])
        with pytest.raises(SystemExit) as stopped:
            command.main()
        assert stopped.value.code == 2
        assert rule in capsys.readouterr().err


def test_partitioned_weights_are_not_exported(world, tmp_path):
    with (
        running(world, tmp_path, zero_stage=3) as trainer,
        pytest.raises(UserError, match="export from a checkpoint"),
    ):
        export(trainer.config, trainer.engine.module, Path(tmp_path / "out"))
