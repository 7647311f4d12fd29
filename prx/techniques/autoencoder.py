"""Frozen autoencoders: FLUX.1's, FLUX.2's, REPA-E's, DC-AE."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prx import loaders
from prx.config import PartConfig, PositiveInt
from prx.errors import UserError
from prx.interfaces import ImageTokenizer, RunShape

VERSION = 1
KL, FLUX2, DC = "AutoencoderKL", "AutoencoderKLFlux2", "AutoencoderDC"
_NO_POSTERIOR = "must be false, AutoencoderDC has no posterior to draw from"


class Autoencoder(ImageTokenizer):
    """diffusers `AutoencoderKL`, `AutoencoderKLFlux2` or `AutoencoderDC`, chosen by the folder's config.json.

    Latents are scaled to unit variance: by `shift_factor` and `scaling_factor` where the model has them; for
    FLUX.2 by its batch-norm statistics over 2x2 patches, as the model's own pipeline does and
    diffusers' `encode` does not. The FLUX.2 latent is handed on unpatchified, [B, 32, H, W]: with patch
    size 2 the denoiser sees the same tokens in the same order. DC-AE reduces 32x and is meant for patch
    size 1; it has no posterior, so that `sample` must be false with it.
    Source: Rombach et al. 2022 (arXiv:2112.10752); FLUX.2 (Black Forest Labs 2025); REPA-E, Leng et al.
    2025 (arXiv:2504.10483); DC-AE, Chen et al. 2024 (arXiv:2410.10733). PRX loads FLUX.2 with the wrong
    class and so scales it differently.
    """

    SOURCE = "Rombach et al. 2022, arXiv:2112.10752"

    class Config(PartConfig):
        """Which weights, and how latents are drawn.

        Args:
            path: Folder or hub id of the autoencoder, or `embedded:ROLE`.
            subfolder: Folder in it.
            revision: Revision of the hub's repository.
            sample: Whether latents are drawn from the posterior, as in PRX, or are its mode.
            channels: Channels of a latent; read from the model's config.json unless told.
            downsample: Image pixels to a latent's, along a side; read from the model's config.json unless told.
        """

        path: str
        subfolder: str | None = None
        revision: str | None = None
        sample: bool = True
        channels: PositiveInt | None = None
        downsample: PositiveInt | None = None

    def __init__(self, config: Config, device: torch.device) -> None:
        import diffusers

        self.config = config
        where = (config.path, config.subfolder, config.revision)
        found = loaders.read_config(*where)
        name = _class_name(config.path, found.get("_class_name"))
        self.channels, self.downsample = _declared(config, *_geometry(config.path, found))
        model_class = getattr(diffusers, name)
        model = loaders.load(model_class, *where, torch_dtype=torch.float32, low_cpu_mem_usage=False)
        # Convolutions of few channels run about three times as fast in this layout on a CPU.
        self.model = model.to(device, memory_format=torch.channels_last)
        self.is_flux2, self.has_posterior = name == FLUX2, name != DC
        if config.sample and not self.has_posterior:
            raise UserError(f"tokenizer.sample: {_NO_POSTERIOR}, got true")

    @classmethod
    def geometry(cls, config: Any) -> tuple[int, int]:
        """Read (channels, downsample) from the declared values or the model's config.json."""
        if config.channels and config.downsample:
            return config.channels, config.downsample
        found = loaders.read_config(config.path, config.subfolder, config.revision)
        _class_name(config.path, found.get("_class_name"))
        return _geometry(config.path, found)

    @classmethod
    def problems(cls, config: Any, shape: RunShape) -> list[tuple[str, str]]:
        """Refuse latents that the FLUX.2 batch norm cannot patchify, and draws from a posterior that is not there."""
        name, found = _known_class(config), []
        if name == FLUX2 and shape.latent_size % 2:
            found.append(("path", f"needs an even latent size for its 2x2 patches, got {shape.latent_size}"))
        if name == DC and config.sample:
            found.append(("sample", f"{_NO_POSTERIOR}, got true"))
        return found

    @classmethod
    def identity(cls, config: Any) -> str:
        """Name the weights and this file's version of scaling."""
        c = config
        return f"autoencoder-v{VERSION}:{loaders.identity(c.path, c.subfolder, c.revision)}:sample={c.sample}"

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Encode images [B, 3, S, S] in [-1, 1] to the scaled posterior's mean, and std when sampling."""
        if not self.has_posterior:
            return self._normalise(self.model.encode(images).latent)
        posterior = self.model.encode(images).latent_dist
        mean = self._normalise(posterior.mean)
        if not self.config.sample:
            return mean
        # The scale of the affine map: what it does to a step of size std.
        std = self._normalise(posterior.mean + posterior.std) - mean
        return torch.cat([mean, std], dim=1)

    def latent(self, moments: Tensor, noise: Tensor | None) -> Tensor:
        """Draw mean + std · noise."""
        if moments.shape[1] == self.channels:
            return moments
        mean, std = moments.chunk(2, dim=1)
        return mean if noise is None else mean + std * noise

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode unit-scale latents [B, C, H, W] to images in [-1, 1]."""
        return self.model.decode(self._denormalise(latents)).sample.clamp(-1, 1)

    def _normalise(self, latents: Tensor) -> Tensor:
        if self.is_flux2:
            mean, std = self._patch_statistics(latents)
            return (latents - mean) / std
        return (latents - self._shift) * self.model.config.scaling_factor

    def _denormalise(self, latents: Tensor) -> Tensor:
        if self.is_flux2:
            mean, std = self._patch_statistics(latents)
            return latents * std + mean
        return latents / self.model.config.scaling_factor + self._shift

    @property
    def _shift(self) -> float:
        return self.model.config.get("shift_factor") or 0.0

    def _patch_statistics(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Lay the batch norm's 4C statistics, ordered (c, row, column), over the latent grid."""
        bn, rows, columns = self.model.bn, latents.shape[2] // 2, latents.shape[3] // 2
        mean = bn.running_mean.view(1, -1, 2, 2)
        std = (bn.running_var + bn.eps).sqrt().view(1, -1, 2, 2)
        return mean.repeat(1, 1, rows, columns), std.repeat(1, 1, rows, columns)


def _known_class(config: Any) -> str | None:
    """Read the model's class; None where `geometry` reports what is wrong, or was told and nothing is here."""
    try:
        if config.channels and config.downsample and not Path(loaders.resolve(config.path)).is_dir():
            return None
        return loaders.read_config(config.path, config.subfolder, config.revision).get("_class_name")
    except UserError:
        return None


def _class_name(path: str, name: str | None) -> str:
    known = (KL, FLUX2, DC)
    if name not in known:
        raise UserError(f"{path!r} holds a {name}, must hold one of {', '.join(known)}")
    return str(name)


def _geometry(path: str, found: dict[str, Any]) -> tuple[int, int]:
    levels = "encoder_block_out_channels" if found["_class_name"] == DC else "block_out_channels"
    for key in ("latent_channels", levels):
        if key not in found:
            raise UserError(f"config.json of {path!r} has no {key}")
    return found["latent_channels"], 2 ** (len(found[levels]) - 1)


def _declared(config: Any, channels: int, downsample: int) -> tuple[int, int]:
    """Refuse a declared geometry that the model contradicts: moments would pass for a latent.

    Raises:
        UserError: Declared channels or downsample are not the model's.
    """
    if config.channels not in (None, channels):
        raise UserError(f"tokenizer.channels: {config.path!r} has {channels} channels, got {config.channels}")
    if config.downsample not in (None, downsample):
        rule = f"{config.path!r} reduces {downsample}x"
        raise UserError(f"tokenizer.downsample: {rule}, got {config.downsample}")
    return channels, downsample
