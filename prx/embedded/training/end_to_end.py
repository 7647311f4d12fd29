"""Tune the `repa_e` tokenizer end to end with a small denoiser, through alignment alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, PRXTransformer2DModel
from diffusers.models.transformers.transformer_prx import get_image_ids, img2seq, seq2img
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import Dinov2WithRegistersModel

from prx.embedded.scenes import ATTRIBUTES
from prx.embedded.training.common import Batch, Job, Record, make_batch, report, schedule, update
from prx.embedded.training.teachers import patch_tokens
from prx.embedded.training.tokenizers import (
    BATCH,
    TUNE_SEED,
    TUNE_SHARE,
    autoencoding_loss,
    finish_kl,
    start,
    tokenizer_optimizers,
    tune_steps,
)

_WIDTH, _DEPTH, _TAP = 64, 3, 1
_TOKENIZER_ALIGN, _DENOISER_ALIGN = 1.5, 0.5
_DENOISER_LR = 1e-3
_WARM_STEPS = 200


class Student(nn.Module):
    """Hold the denoiser, its normalisation of the latent, its scene conditioning and its projector.

    Source: Leng et al. 2025, arXiv:2504.10483; scene attributes play the role of the class label.
    """

    offsets: Tensor

    def __init__(self, channels: int, teacher_width: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, eps=1e-4, momentum=0.1, affine=False)
        self.denoiser = PRXTransformer2DModel(
            in_channels=channels,
            patch_size=1,
            context_in_dim=_WIDTH,
            hidden_size=_WIDTH,
            num_heads=2,
            depth=_DEPTH,
            axes_dim=[16, 16],
        )
        self.condition = nn.Embedding(sum(map(len, ATTRIBUTES.values())), _WIDTH)
        self.projector = nn.Sequential(
            *(
                nn.Linear(_WIDTH, 128),
                nn.SiLU(),
                nn.Linear(128, 128),
                nn.SiLU(),
                nn.Linear(128, teacher_width),
            )
        )
        sizes = torch.tensor([0, *(len(values) for values in ATTRIBUTES.values())])
        self.register_buffer("offsets", sizes.cumsum(0)[:-1])

    def forward(self, noised: Tensor, t: Tensor, attributes: Tensor, *, whole: bool) -> tuple[Tensor, Tensor | None]:
        """Give the projected tap, and the velocity unless only the tap is asked for.

        Shapes: noised [B, C, 8, 8], t [B], attributes int64 [B, 9]; tap [B, 64, E], velocity as noised.
        """
        net = self.denoiser
        text = net.txt_in(self.condition(attributes + self.offsets))
        tokens = net.img_in(img2seq(noised, 1))
        rope = net.pe_embedder(get_image_ids(len(noised), *noised.shape[2:], 1, noised.device))
        time = net._compute_timestep_embedding(t, dtype=tokens.dtype)
        tap = tokens
        for index, block in enumerate(net.blocks[: None if whole else _TAP + 1]):
            tokens = block(tokens, text, time, rope, None)
            tap = tokens if index == _TAP else tap
        velocity = seq2img(net.final_layer(tokens, time), 1, noised.shape) if whole else None
        return self.projector(tap), velocity


@dataclass(frozen=True)
class Draw:
    """One step's scenes, teacher features, noise and times, shared by both passes."""

    batch: Batch
    target: Tensor
    noise: Tensor
    t: Tensor


def build_repa_e(job: Job) -> Record:
    """Tune flux's starting point with the end-to-end recipe for as many tokenizer updates as flux gets."""
    torch.manual_seed(TUNE_SEED)
    vae, steps = start(job), tune_steps(job)
    teacher = Dinov2WithRegistersModel.from_pretrained(job.out / "dinov2", dtype=torch.float32).eval()
    student = Student(vae.config.latent_channels, teacher.config.hidden_size)
    measured = _tune(vae, student, teacher, warm=job.steps(_WARM_STEPS), steps=steps)
    facts = {"tune_steps": steps, "warm_steps": job.steps(_WARM_STEPS), "teacher": "dinov2", **measured}
    objective = "reconstruction, KL and 1.5 x alignment through a small denoiser, trained beside it"
    return finish_kl(job, "repa_e", vae, objective, facts)


def _tune(vae: AutoencoderKL, student: Student, teacher: Any, *, warm: int, steps: int) -> dict[str, float]:
    """Alternate tokenizer and denoiser passes; the tokenizer waits until the denoiser has warmed up.

    The paper starts both at once; a run this short would align the latent to an untrained denoiser.
    """
    tokenizer_found = tokenizer_optimizers((vae,), TUNE_SHARE)
    tokenizer_decays = [LambdaLR(optimizer, schedule(steps)) for optimizer in tokenizer_found]
    denoiser_optimizer = torch.optim.AdamW(student.parameters(), lr=_DENOISER_LR)
    denoiser_decay = LambdaLR(denoiser_optimizer, schedule(warm + steps))
    rng = torch.Generator().manual_seed(TUNE_SEED)
    losses: list[float] = []
    alignments: list[float] = []
    for step in range(warm + steps):
        # Tokenizer updates see exactly the scenes of flux's plain ones; warming up has its own.
        draw = _draw(step - warm if step >= warm else steps + step, teacher, rng)
        if step < warm:
            latent = _encode(vae, draw, rng)
        else:
            latent, loss, alignment = _tokenizer_pass(vae, student, tokenizer_found, draw, rng)
            _advance(tokenizer_decays)
            losses.append(loss)
            alignments.append(alignment)
            report("repa_e", step - warm, steps, losses)
        _denoiser_pass(student, denoiser_optimizer, draw, latent)
        _advance([denoiser_decay])
    tail = max(1, steps // 10)
    return {"train_loss": sum(losses[-tail:]) / tail, "alignment_cosine": -sum(alignments[-tail:]) / tail}


def _advance(decays: Sequence[LambdaLR]) -> None:
    for decay in decays:
        decay.step()


def _draw(step: int, teacher: Any, rng: torch.Generator) -> Draw:
    batch = make_batch(TUNE_SEED, step, BATCH)
    with torch.no_grad():
        target = patch_tokens(teacher, batch.images)
    t = torch.sigmoid(torch.randn(BATCH, generator=rng))
    return Draw(batch, target, torch.randn((BATCH, 4, 8, 8), generator=rng), t)


@torch.no_grad()
def _encode(vae: AutoencoderKL, draw: Draw, rng: torch.Generator) -> Tensor:
    posterior = vae.encode(2 * draw.batch.images - 1).latent_dist
    return posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=rng)


def _tokenizer_pass(
    vae: AutoencoderKL, student: Student, found: Sequence[Any], draw: Draw, rng: torch.Generator
) -> tuple[Tensor, float, float]:
    """Update the tokenizer only; the student is differentiable, frozen and in evaluation mode."""
    student.eval().requires_grad_(False)
    loss, latent = autoencoding_loss(vae, draw.batch.images, rng)
    noised = _noised(student.norm(latent), draw)
    projected, _ = student(noised, draw.t, draw.batch.attributes, whole=False)
    alignment = _alignment(projected, draw.target)
    update(found, loss + _TOKENIZER_ALIGN * alignment)
    student.train().requires_grad_(True)
    return latent.detach(), loss.item(), alignment.item()


def _denoiser_pass(student: Student, optimizer: torch.optim.Optimizer, draw: Draw, latent: Tensor) -> None:
    """Update denoiser and projector on the latent, which takes no gradient."""
    clean = student.norm(latent.detach())
    projected, velocity = student(_noised(clean, draw), draw.t, draw.batch.attributes, whole=True)
    assert velocity is not None
    matching = F.mse_loss(velocity, draw.noise - clean)
    update([optimizer], matching + _DENOISER_ALIGN * _alignment(projected, draw.target))


def _noised(clean: Tensor, draw: Draw) -> Tensor:
    t = draw.t.view(-1, 1, 1, 1)
    return (1 - t) * clean + t * draw.noise


def _alignment(projected: Tensor, target: Tensor) -> Tensor:
    return -F.cosine_similarity(projected, target, dim=-1).mean()
