"""Train the image tokenizer together with the denoiser, through alignment."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from prx import loaders, perceptual_net
from prx.config import PartConfig, PositiveFloat, PositiveInt
from prx.discriminator import PatchDiscriminator, hinge
from prx.errors import UserError
from prx.interfaces import Drawn, LogUniform, RunShape, TrainedTokenizer
from prx.latent_norm import LatentNorm
from prx.layers import frozen

VERSION = 1
KL = "AutoencoderKL"
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class RepaE(TrainedTokenizer):
    """REPA-E end to end: a KL autoencoder learns to be aligned, the denoiser to match its latents.

    Gradients: flow matching reaches the denoiser alone, because latents are detached there; alignment of the
    denoiser's pass reaches denoiser and projector; alignment of the tokenizer's pass, weighted `align_weight`,
    the encoder alone, through a denoiser and a projector that it leaves as they are; reconstruction and
    adversary reach encoder and decoder. The tokenizer's pass normalises by running statistics and drops
    neither captions nor tokens.
    Source: Leng et al. 2025 (arXiv:2504.10483). All gradients here belong to one step of one optimizer, and are
    clipped by one norm; there the tokenizer, its adversary and the denoiser have an optimizer each. The
    adversary starts untrained here, and its own loss has weight 1. The divergence is summed over a latent and
    averaged over images, the others are averaged over every element.
    """

    SOURCE = "Leng et al. 2025, arXiv:2504.10483"
    SEARCH = {"align_weight": LogUniform(0.5, 5.0)}
    PROVIDES = frozenset({"trained_tokenizer"})
    REQUIRES = ("an alignment term", "micro-batch of a worker's whole share")
    CONFLICTS = ("losses that pair samples",)

    class Config(PartConfig):
        """Where the tokenizer starts, and the weights of its losses.

        Args:
            path: Folder or hub id of the autoencoder, or `embedded:ROLE`.
            subfolder: Folder in it.
            revision: Revision of the hub's repository.
            channels: Channels of a latent; read from the model's config.json unless told.
            downsample: Image pixels to a latent's, along a side; read from the model's config.json unless told.
            align_weight: Weight of each alignment term in the tokenizer's loss, whatever its weight in the
                denoiser's: two teachers pull the tokenizer twice as hard as one.
            reconstruction_weight: Weight of the pictures' distance.
            divergence_weight: Weight of the posterior's divergence from a unit normal.
            perceptual: Network that compares pictures; null leaves it out.
            perceptual_weight: Weight of that comparison.
            gan_weight: Weight of the adversary; null leaves it out.
            gan_width: Channels of its first layer.
            gan_depth: Layers of it that halve the picture.
        """

        path: str
        subfolder: str | None = None
        revision: str | None = None
        channels: PositiveInt | None = None
        downsample: PositiveInt | None = None
        align_weight: Weight = 1.5
        reconstruction_weight: Weight = 1.0
        divergence_weight: Weight = 1e-6
        perceptual: str | None = None
        perceptual_weight: PositiveFloat = 1.0
        gan_weight: PositiveFloat | None = 0.1
        gan_width: PositiveInt = 64
        gan_depth: PositiveInt = 3

    def __init__(self, config: Config, device: torch.device) -> None:
        from diffusers import AutoencoderKL

        super().__init__()
        self.config, self.align_weight = config, config.align_weight
        where = (config.path, config.subfolder, config.revision)
        self.channels, self.downsample = self._declared(config, *_geometry(config))
        vae = loaders.load(AutoencoderKL, *where, torch_dtype=torch.float32, low_cpu_mem_usage=False)
        self.vae = vae.requires_grad_(True)
        self.norm = LatentNorm(self.channels)
        self.adversary: nn.Module | None = None
        if config.gan_weight is not None:
            self.adversary = PatchDiscriminator(config.gan_width, config.gan_depth)
        self.to(device)

    @classmethod
    def geometry(cls, config: Any) -> tuple[int, int]:
        """Read (channels, downsample) from the declared values or the model's config.json."""
        if config.channels and config.downsample:
            return config.channels, config.downsample
        return _geometry(config)

    @classmethod
    def problems(cls, config: Any, shape: RunShape) -> list[tuple[str, str]]:
        """Refuse an unknown perceptual network, and pictures too small for it."""
        if config.perceptual is None:
            return []
        try:
            smallest = perceptual_net.SMALLEST[perceptual_net.kind(config.perceptual)]
        except UserError as error:
            return [("perceptual", str(error))]
        size = shape.latent_size * cls.geometry(config)[1]
        wanted = f"must be null for pictures below {smallest} pixels, got {config.perceptual!r} for {size}"
        return [("perceptual", wanted)] if size < smallest else []

    @staticmethod
    def _declared(config: Config, channels: int, downsample: int) -> tuple[int, int]:
        """Refuse a declared geometry that the model contradicts.

        Raises:
            UserError: Declared channels or downsample are not the model's.
        """
        if config.channels not in (None, channels):
            raise UserError(f"tokenizer.channels: {config.path!r} has {channels} channels, got {config.channels}")
        if config.downsample not in (None, downsample):
            raise UserError(f"tokenizer.downsample: {config.path!r} reduces {downsample}x, got {config.downsample}")
        return channels, downsample

    @classmethod
    def identity(cls, config: Any) -> str:
        """Name the weights that training starts from."""
        c = config
        return f"repa-e-v{VERSION}:{loaders.identity(c.path, c.subfolder, c.revision)}"

    def _posterior(self, images: Tensor) -> Any:
        return self.vae.encode(images.to(next(self.vae.parameters()).dtype)).latent_dist

    def draw(self, images: Tensor, noise: Tensor) -> Drawn:
        """Draw mean + std · noise from the posterior of images [B, 3, S, S]."""
        posterior = self._posterior(images)
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(dim=(1, 2, 3)).mean()
        return Drawn(mean + (0.5 * logvar).exp() * noise, divergence)

    def normalise(self, latents: Tensor) -> Tensor:
        """Apply the running statistics."""
        return self.norm(latents)

    def normalise_batch(self, latents: Tensor) -> Tensor:
        """Apply the batch's statistics."""
        return self.norm.batch(latents)

    def losses(self, images: Tensor, drawn: Drawn) -> dict[str, tuple[float, Tensor]]:
        """Compute those whose weight is not zero; the decoder runs where one of them looks at its picture."""
        c, found = self.config, {}
        if c.divergence_weight:
            found["divergence"] = (c.divergence_weight, drawn.divergence)
        if c.reconstruction_weight or c.perceptual is not None or self.adversary is not None:
            made = self._decoded(drawn.latents)
            found |= self._comparison(images, made) | self._contest(images, made)
        return found

    def _comparison(self, images: Tensor, made: Tensor) -> dict[str, tuple[float, Tensor]]:
        c, found = self.config, {}
        if c.reconstruction_weight:
            found["reconstruction"] = (c.reconstruction_weight, F.l1_loss(made, images))
        if c.perceptual is not None:
            network = perceptual_net.shared(c.perceptual, str(made.device))
            found["perceptual"] = (c.perceptual_weight, network.distance(made, images).mean())
        return found

    def _contest(self, images: Tensor, made: Tensor) -> dict[str, tuple[float, Tensor]]:
        """Let decoder and adversary learn from each other, neither from the other's loss."""
        if self.adversary is None or self.config.gan_weight is None:
            return {}
        dtype = next(self.adversary.parameters()).dtype
        with frozen(self.adversary):
            fooled = -self.adversary(made.to(dtype)).mean()
        told = hinge(self.adversary(images.to(dtype)), self.adversary(made.detach().to(dtype)))
        return {"gan": (self.config.gan_weight, fooled), "adversary": (1.0, told)}

    def _decoded(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents.to(next(self.vae.parameters()).dtype)).sample.float()

    @torch.no_grad()
    def measure(self, images: Tensor) -> Tensor:
        """Give each channel's mean and mean square under the posterior, [2, C]."""
        posterior = self._posterior(images)
        mean, var = posterior.mean.float(), posterior.var.float()
        return torch.stack([mean.mean(dim=(0, 2, 3)), (mean.square() + var).mean(dim=(0, 2, 3))])

    def start_from(self, mean: Tensor, var: Tensor) -> None:
        """Set the running statistics."""
        self.norm.start_from(mean, var)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Encode images to the normalised posterior's mean and std, [B, 2C, H, W], by the weights of this step."""
        posterior = self._posterior(images)
        return torch.cat([self.norm(posterior.mean), posterior.std.float() / self.norm.std], dim=1)

    def latent(self, moments: Tensor, noise: Tensor | None) -> Tensor:
        """Draw mean + std · noise."""
        mean, std = moments.chunk(2, dim=1)
        return mean if noise is None else mean + std * noise

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Undo the normalisation of latents [B, C, H, W] and decode them to images in [-1, 1]."""
        return self._decoded(self.norm.inverse(latents)).clamp(-1, 1)


def _geometry(config: Any) -> tuple[int, int]:
    """Read (channels, downsample).

    Raises:
        UserError: The folder holds no AutoencoderKL.
    """
    found = loaders.read_config(config.path, config.subfolder, config.revision)
    if found.get("_class_name") != KL:
        raise UserError(f"{config.path!r} holds a {found.get('_class_name')}, must hold an {KL} to be trained")
    return found["latent_channels"], 2 ** (len(found["block_out_channels"]) - 1)
