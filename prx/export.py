"""Write a trained run as a folder that diffusers samples from, or say why its pipelines cannot."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from prx import recipe
from prx.config import RunConfig
from prx.errors import ConfigError, Problem, UserError
from prx.interfaces import LossTerm, Objective
from prx.text import TextEncoder
from prx.train_step import TrainStep

CPU = torch.device("cpu")
PIXEL_CLAMP = 0.05
"""The smallest time that `PRXPixelPipeline` divides by."""
TIME_TOLERANCE = 0.01
DECODERS = ("AutoencoderKL", "AutoencoderDC")
RECIPE = "run.yaml"
"""The run's configuration in the folder it is exported to; `python -m prx train` takes it as it is."""


def export(config: RunConfig, module: TrainStep, out: Path, card: str = "") -> None:
    """Write denoiser, scheduler, text encoder, tokenizer and VAE, in float32, and a model card.

    `module` holds whole weights, those to be sampled from: at ZeRO 3, or for an average of the weights, take
    it from a checkpoint with `read_module`. `card` is markdown for the card, such as a table of results. The
    folder appears whole or not at all. It loads with `diffusers.PRXPipeline`, or `PRXPixelPipeline` where the
    run predicts clean pixels.

    Raises:
        ConfigError: The pipelines would not draw what this run's own sampler draws; lists every reason.
        UserError: The folder exists or cannot be written, or a frozen model cannot be loaded.
    """
    out = out.resolve()  # `.` has no name
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists; choose another folder to export to, or remove it")
    found = list(refusals(config, module))
    if found:
        raise ConfigError(found)
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"--out: {out} cannot be written ({error.strerror})") from error
    _write(config, module, partial)
    (partial / "README.md").write_text(_card(config, out.name, card), encoding="utf-8")
    (partial / RECIPE).write_text(_settings(config), encoding="utf-8")
    if out.exists():
        out.rmdir()
    partial.rename(out)


def refusals(config: RunConfig, module: TrainStep) -> Iterator[Problem]:
    """Find what diffusers' pipelines would do otherwise than our sampler, by trying it where that is possible."""
    if any(hasattr(parameter, "ds_id") for parameter in module.parameters()):
        raise UserError("the weights are partitioned (ZeRO 3); export from a checkpoint")
    yield from _prediction(config, module.objective)
    yield from _times(config, module.objective)
    if module.router is not None:
        kept, full = torch.zeros(1, 2, config.denoiser.width), torch.ones(1, 2, config.denoiser.width)
        router = copy.deepcopy(module.router).float().cpu()
        if not torch.equal(router.merge(kept, full, None), kept):
            yield Problem("routing", f"{_use(config.routing)} changes tokens when nothing is routed too, with weights "
                          "that PRXTransformer2DModel does not have")  # fmt: skip
    if module.resolution is not None:
        yield Problem("denoiser.resolution", "PRXTransformer2DModel has no resolution tokens; only `vec` is part of it")
    yield from _sampling(config, module)


def _prediction(config: RunConfig, flow: Objective) -> Iterator[Problem]:
    """Compare what the network puts out with what a pipeline takes it for."""
    provides = recipe.shape_of(config).provides
    if "trained_tokenizer" in provides:
        yield Problem("tokenizer", "PRXPipeline undoes one scale and one shift before decoding, not the normalisation "
                      "of every channel that a trained tokenizer ends with")  # fmt: skip
    elif "pixels" in provides:
        if not _gives_clean(flow):
            yield Problem("objective", "PRXPixelPipeline takes the output for the clean image and divides by at least "
                          f"{PIXEL_CLAMP}, unlike {_use(config.objective)}; PRXPipeline needs a VAE")  # fmt: skip
        return
    else:
        held = type(_vae(config)).__name__
        if held not in DECODERS:
            yield Problem("tokenizer", f"PRXPipeline undoes one scale and one shift before decoding, as for "
                          f"{' and '.join(DECODERS)}; {held} normalises every channel")  # fmt: skip
    if not _gives_velocity(flow):
        yield Problem("objective", f"PRXPipeline takes the output for a velocity, unlike {_use(config.objective)}; "
                      "only in pixels is there a pipeline for predicted clean images")  # fmt: skip
    if flow.noise_scale != 1.0:
        yield Problem("objective.noise_scale", f"PRXPipeline starts from noise of scale 1, got {flow.noise_scale}")


def _probe() -> tuple[Tensor, Tensor, Tensor]:
    """Give an output, a noised latent and times, to try an objective with."""
    values = torch.linspace(-2, 2, 8)
    return values[:4].view(4, 1, 1, 1), values[4:].view(4, 1, 1, 1), torch.tensor([0.01, 0.2, 0.7, 1.0])


def _gives_velocity(flow: Objective) -> bool:
    output, noised, t = _probe()
    return torch.equal(flow.to_velocity(output, noised, t), output)


def _gives_clean(flow: Objective) -> bool:
    output, noised, t = _probe()
    expected = (noised - output) / t.clamp(min=PIXEL_CLAMP).view(-1, 1, 1, 1)
    return torch.allclose(flow.to_velocity(output, noised, t), expected)


def _times(config: RunConfig, flow: Objective) -> Iterator[Problem]:
    """Compare the sampler's times and strides with the scheduler's."""
    num = config.sampling.num_steps
    ours, made = flow.schedule(num), scheduler(flow, num)
    made.set_timesteps(num)
    apart = float((made.sigmas - ours).abs().max())
    if apart > TIME_TOLERANCE:
        yield Problem("sampling.num_steps", f"the scheduler's times would be {apart:.3f} away from the sampler's; take "
                      f"more than {num} steps")  # fmt: skip
    pairs = zip(ours[:-1].tolist(), ours[1:].tolist(), strict=True)
    if any(abs(flow.stride(now, after) - (now - after)) > 1e-6 for now, after in pairs):
        yield Problem("sampling.num_steps", "the sampler's last step goes to the predicted clean image, the "
                      f"scheduler's by a difference in time; they agree if the last time is at least {PIXEL_CLAMP}, "
                      f"got {float(ours[-2]):.3f}")  # fmt: skip


def _sampling(config: RunConfig, module: TrainStep) -> Iterator[Problem]:
    sampling = config.sampling
    if sampling.guidance != "text":
        yield Problem("sampling.guidance", f"the pipelines know text guidance only, got {sampling.guidance!r}")
    if sampling.guidance_scale < 1:
        yield Problem("sampling.guidance_scale", f"the pipelines take at least 1, got {sampling.guidance_scale:g}")
    for name, term in module.losses.items():
        assert isinstance(term, LossTerm)
        if term.corrects and (module.acting is None or name in module.acting):
            yield Problem(f"losses.{name}", "the pipelines cannot correct the velocity, as this term asks for")


def _use(part: Any) -> str:
    return repr(part.use)


def _vae(config: RunConfig) -> Any:
    return getattr(recipe.tokenizer(config.tokenizer, CPU), "model", None)


def scheduler(flow: Objective, num_steps: int) -> Any:
    """Build the scheduler whose times, for `num_steps`, are those of our sampler.

    diffusers shifts the times 1..1/n twice at their small end, n being `num_train_timesteps`, and spaces the
    steps down to there, not to 1/num_steps: with n = shift (num_steps - 1) + 1 both ends agree, and so does
    all between. n is rounded, which tells only for shifts that are no integers.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler

    middle = float(flow.schedule(2)[1])
    shift = round(middle / (1 - middle), 6)
    levels = max(1, round(shift * (num_steps - 1) + 1))
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=levels, shift=shift)


def _write(config: RunConfig, module: TrainStep, out: Path) -> None:
    """Save the pipeline, and mend two settings that diffusers writes other than it reads them."""
    encoder = TextEncoder(config.text.encoder, config.text.max_tokens, CPU)
    encoder.tokenizer.model_max_length = config.text.max_tokens  # to which the pipeline pads and cuts prompts
    parts = {
        "transformer": copy.deepcopy(module.denoiser).float().cpu().eval(),
        "scheduler": scheduler(module.objective, config.sampling.num_steps),
        "text_encoder": encoder.model.encoder, "tokenizer": encoder.tokenizer,
        "default_sample_size": config.data.image_size,
    }  # fmt: skip
    _pipeline(config, module, parts).save_pretrained(out)
    # The encoder's own settings do not load: diffusers looks for them inside those of the whole model.
    encoder.model.config.save_pretrained(out / "text_encoder")
    if (out / "vae").is_dir():
        _write_shift(out / "vae" / "config.json")


def _pipeline(config: RunConfig, module: TrainStep, parts: dict[str, Any]) -> Any:
    from diffusers import PRXPipeline, PRXPixelPipeline

    if "pixels" in recipe.shape_of(config).provides:
        scale = module.objective.noise_scale
        return PRXPixelPipeline(**parts, prompt_max_tokens=config.text.max_tokens, noise_scale=scale)
    vae = copy.deepcopy(_vae(config)).to(memory_format=torch.contiguous_format)
    return PRXPipeline(**parts, vae=vae)


def _write_shift(file: Path) -> None:
    """Write an absent shift as 0: the pipeline would add None to the latents."""
    found = json.loads(file.read_text(encoding="utf-8"))
    if "shift_factor" in found and found["shift_factor"] is None:
        file.write_text(json.dumps(found | {"shift_factor": 0.0}, indent=2) + "\n", encoding="utf-8")


def _card(config: RunConfig, folder: str, card: str) -> str:
    """Write the model card: how to sample as the run's own sampler does, and the whole configuration."""
    pixels = "pixels" in recipe.shape_of(config).provides
    name, sampling, size = "PRXPixelPipeline" if pixels else "PRXPipeline", config.sampling, config.data.image_size
    cleaning = "" if pixels else "    skip_text_cleaning=True,\n"
    call = (
        f"    prompt, height={size}, width={size}, use_resolution_binning=False,\n{cleaning}"
        f"    num_inference_steps={sampling.num_steps}, guidance_scale={sampling.guidance_scale:g},\n"
    )
    return f"""---
library_name: diffusers
pipeline_tag: text-to-image
---
# {config.name}

{card.strip() or "A text-to-image model trained with prx-sweeps."}

## Sampling

```python
from diffusers import {name}

pipe = {name}.from_pretrained("{folder}")
image = pipe(
{call}).images[0]
```

These settings repeat the sampler that the run was evaluated with (`{config.precision}` there, float32 here);
the scheduler's times are made for {sampling.num_steps} steps. Captions were not cleaned in training. Encoding
prompts needs the package ftfy, and the pipeline of diffusers 0.42 takes one prompt a call under guidance.
`{RECIPE}` holds the configuration below; `prx-sweep sample` draws with it.

## Configuration

```yaml
{_settings(config).strip()}
```
"""


def _settings(config: RunConfig) -> str:
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
