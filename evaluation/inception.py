"""The Inception network behind published FID figures: torch-fidelity's, as torchmetrics runs it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PUBLISHED = "torch-fidelity"
"""How the role names this network; `torch-fidelity:FILE` names its weights where they are not in torch's cache."""
WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{WEIGHTS}"
HASH_PREFIX = "6726825d"
WIDTH = 2048


class AsGiven:
    """Hand uint8 pixels on: this network resizes and scales by itself, to 299 x 299, bilinear, antialiased."""

    version = "torchmetrics-bilinear-aa-299-v1"

    def __call__(self, images: Tensor) -> Tensor:
        """Return what came."""
        return images


def is_published(path: str | Path) -> bool:
    """Say whether a role's path names this network."""
    return str(path).partition(":")[0] == PUBLISHED


def load_published(path: str | Path, device: torch.device) -> tuple[Callable[[Tensor], Tensor], str]:
    """Load the network, uint8 [B, 3, H, W] -> [B, 2048], and what identifies its weights.

    The file is a pickle: it is opened only if it is the published one, byte for byte.

    Raises: FileNotFoundError if there is no such file, ValueError for another file or without the package; each says
        what to do.
    """
    network_class = _network_class()
    file = _file(path)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    if not digest.startswith(HASH_PREFIX):
        rule = f"{file} must be the published {WEIGHTS} (sha256 {HASH_PREFIX}...)"
        raise ValueError(f"{rule}, got sha256 {digest[:8]}...; get it from {URL}")
    network = network_class("inception-v3-compat", [str(WIDTH)], str(file)).to(device)
    return network, digest[:16]


def _network_class() -> Any:
    try:
        import torch_fidelity  # noqa: F401
        from torchmetrics.image.fid import NoTrainInceptionV3
    except ImportError as error:
        raise ValueError(
            f"evaluation.inception: {PUBLISHED} needs the optional packages of pip install 'prx-sweeps[fid]', "
            f"got {type(error).__name__}: {error}"
        ) from error
    return NoTrainInceptionV3


def _file(path: str | Path) -> Path:
    given = str(path).partition(":")[2]
    file = Path(given).expanduser() if given else Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS
    if not file.is_file():
        how = f"curl -L --create-dirs -o {file} {URL}"
        raise FileNotFoundError(f"the Inception weights {file} must exist, got no such file; get them with: {how}")
    return file
