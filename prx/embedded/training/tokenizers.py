"""Train the image tokenizers; `flux` and `repa_e` part ways only after equal pretraining."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, AutoencoderKLFlux2
from torch import Tensor, nn
from transformers import DINOv3ViTModel

from prx.embedded.scenes import IMAGE_SIZE
from prx.embedded.training.common import (
    PROBE_SEED,
    Job,
    Record,
    fit_with,
    held_out,
    make_batch,
    num_parameters,
    probe_patches,
    save,
)
from prx.embedded.training.conv_muon import ConvMuon
from prx.embedded.training.teachers import patch_tokens

BATCH = 24
KL_WEIGHT = 1e-4
TUNE_SEED = 22
_START_SEED, _START_STEPS = 21, 600
_FLUX2_SEED, _FLUX2_STEPS = 23, 700
TUNE_SHARE = 0.5
_TUNE_STEPS = 300
_LR, _CONV_LR = 2e-3, 1e-2
_SEMANTIC_WEIGHT = 0.1


def build_flux(job: Job) -> Record:
    """Train the plain KL tokenizer: shared pretraining, then as many plain steps as repa_e's aligned ones."""
    torch.manual_seed(TUNE_SEED)
    vae, steps = start(job), tune_steps(job)
    rng = torch.Generator().manual_seed(TUNE_SEED)
    loss = fit_with(
        tokenizer_optimizers((vae,), TUNE_SHARE),
        lambda step: autoencoding_loss(vae, tune_images(step), rng)[0],
        steps=steps,
        label="flux",
    )
    return finish_kl(job, "flux", vae, "reconstruction and KL", {"tune_steps": steps, "train_loss": loss})


def build_flux2(job: Job) -> Record:
    """Train the 32-channel tokenizer whose latent also predicts the DINOv3-like teacher's features."""
    torch.manual_seed(_FLUX2_SEED)
    vae, steps = _new_flux2(), job.steps(_FLUX2_STEPS)
    teacher = DINOv3ViTModel.from_pretrained(job.out / "dinov3", dtype=torch.float32).eval()
    head = nn.Conv2d(vae.config.latent_channels, teacher.config.hidden_size, 1)
    rng = torch.Generator().manual_seed(_FLUX2_SEED)

    def loss_of(step: int) -> Tensor:
        images = make_batch(_FLUX2_SEED, step, BATCH).images
        loss, latent = autoencoding_loss(vae, images, rng)
        with torch.no_grad():
            target = patch_tokens(teacher, images)
        return loss - _SEMANTIC_WEIGHT * F.cosine_similarity(head(latent).flatten(2).mT, target, dim=-1).mean()

    loss = fit_with(tokenizer_optimizers((vae, head)), loss_of, steps=steps, label="flux2")
    _measure_batch_norm(vae, job)
    save(vae, job.out / "flux2")
    facts = {
        "objective": "reconstruction, KL and cosine of a linear map of the latent with dinov3 tokens",
        "steps": steps,
        "batch": BATCH,
        "seed": _FLUX2_SEED,
        "train_loss": loss,
    }
    return {**facts, **measure(AutoencoderKLFlux2, job, "flux2")}


def new_kl() -> AutoencoderKL:
    """Build the untrained f4 tokenizer with 4 latent channels."""
    return _initialised(AutoencoderKL(**_blocks((16, 32, 48)), latent_channels=4))


def _new_flux2() -> AutoencoderKLFlux2:
    vae = AutoencoderKLFlux2(**_blocks((32, 48, 48)), decoder_block_out_channels=(16, 32, 48), latent_channels=32)
    return _initialised(vae)


def _initialised(vae: Any) -> Any:
    """Keep signals at unit size through the layers and start with a sharp posterior; both save many steps."""
    for module in vae.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
    with torch.no_grad():
        vae.encoder.conv_out.bias[vae.config.latent_channels :] -= 6
    return vae


def tokenizer_optimizers(modules: Sequence[nn.Module], share: float = 1.0) -> list[Any]:
    """Give AdamW the vectors and ConvMuon the matrices and convolutions, at a share of the full rates."""
    parameters = [p for module in modules for p in module.parameters()]
    return [
        torch.optim.AdamW([p for p in parameters if p.ndim < 2], lr=share * _LR, betas=(0.9, 0.95), weight_decay=0.0),
        ConvMuon([p for p in parameters if p.ndim >= 2], lr=share * _CONV_LR),
    ]


def _blocks(channels: tuple[int, ...]) -> dict[str, Any]:
    return {
        "down_block_types": ("DownEncoderBlock2D",) * len(channels),
        "up_block_types": ("UpDecoderBlock2D",) * len(channels),
        "block_out_channels": channels,
        "norm_num_groups": 8,
        "layers_per_block": 1,
        "sample_size": IMAGE_SIZE,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    }


def start(job: Job) -> AutoencoderKL:
    """Give the common starting point of flux and repa_e, trained once per build."""
    steps = job.steps(_START_STEPS)
    folder = job.work / f"flux_start_{steps}"
    if not (folder / "config.json").exists():
        torch.manual_seed(_START_SEED)
        vae, rng = new_kl(), torch.Generator().manual_seed(_START_SEED)
        fit_with(
            tokenizer_optimizers((vae,)),
            lambda step: autoencoding_loss(vae, make_batch(_START_SEED, step, BATCH).images, rng)[0],
            steps=steps,
            label="flux pretraining",
        )
        vae.save_pretrained(folder)
    return AutoencoderKL.from_pretrained(folder).train()


def tune_steps(job: Job) -> int:
    """Give the number of tokenizer updates after pretraining, equal for flux and repa_e."""
    return job.steps(_TUNE_STEPS)


def tune_images(step: int) -> Tensor:
    """Draw the images of a tuning step, the same for flux and repa_e."""
    return make_batch(TUNE_SEED, step, BATCH).images


def autoencoding_loss(vae: Any, images: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Give reconstruction plus KL, and the sampled latent.

    Shapes: images [B, 3, 32, 32] in [0, 1]; latent [B, C, 8, 8].
    """
    pixels = 2 * images - 1
    posterior = vae.encode(pixels).latent_dist
    latent = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=rng)
    loss = reconstruction_loss(vae.decode(latent).sample, pixels)
    return loss + KL_WEIGHT * posterior.kl().mean() / latent[0, 0].numel(), latent


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """Average L1 and L2 of pixels and L1 of their differences; the latter stands in for LPIPS on edges."""
    loss = F.l1_loss(output, target) + 2 * F.mse_loss(output, target)
    for dim in (-1, -2):
        loss = loss + 0.5 * F.l1_loss(output.diff(dim=dim), target.diff(dim=dim))
    return loss


def finish_kl(job: Job, role: str, vae: AutoencoderKL, objective: str, facts: dict[str, Any]) -> Record:
    """Set the latent's scale and shift from data, save, and measure what was saved."""
    latents = _sample_latents(vae, job)
    vae.register_to_config(
        shift_factor=round(latents.mean().item(), 5), scaling_factor=round(1 / latents.std().item(), 5)
    )
    save(vae, job.out / role)
    facts = {
        "objective": objective,
        "pretraining_steps": job.steps(_START_STEPS),
        **facts,
        "batch": BATCH,
        "seed": [_START_SEED, TUNE_SEED],
        "scaling_factor": vae.config.scaling_factor,
        "shift_factor": vae.config.shift_factor,
    }
    return {**facts, **measure(AutoencoderKL, job, role)}


@torch.no_grad()
def _sample_latents(vae: Any, job: Job) -> Tensor:
    vae.eval()
    images = make_batch(PROBE_SEED, 1, job.scenes(1024)).images
    rng = torch.Generator().manual_seed(PROBE_SEED)
    posteriors = [vae.encode(2 * part - 1).latent_dist for part in images.split(128)]
    return torch.cat([p.mean + p.std * torch.randn(p.mean.shape, generator=rng) for p in posteriors])


def _measure_batch_norm(vae: Any, job: Job) -> None:
    """Set the running statistics of the 2x2-patchified latent, which encode() itself does not apply."""
    latents = F.pixel_unshuffle(_sample_latents(vae, job), 2)
    vae.bn.running_mean.copy_(latents.mean((0, 2, 3)))
    vae.bn.running_var.copy_(latents.var((0, 2, 3)))


def measure(library: Any, job: Job, role: str) -> Record:
    """Measure reconstruction and how linearly the latent tells colour and shape, from the saved folder."""
    vae = library.from_pretrained(job.out / role).eval()
    with torch.no_grad():
        psnr = psnr_of(vae, held_out(job.scenes(512)).images)
    return {
        "parameters": num_parameters(vae),
        "psnr_db": psnr,
        "latent_probe": probe_patches(_latent_tokens(vae), job.scenes(768)),
    }


def psnr_of(vae: Any, images: Tensor) -> float:
    """Measure the mean reconstruction PSNR of images in [0, 1].

    Units: decibels.
    """
    parts = []
    for part in images.split(128):
        output = vae.decode(vae.encode(2 * part - 1).latent_dist.mode()).sample
        error = ((output.clamp(-1, 1) + 1) / 2 - part).square().mean((1, 2, 3))
        parts.append(-10 * error.clamp_min(1e-8).log10())
    return torch.cat(parts).mean().item()


def _latent_tokens(vae: Any) -> Callable[[Tensor], Tensor]:
    return lambda images: vae.encode(2 * images - 1).latent_dist.mode().flatten(2).mT
