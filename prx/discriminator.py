"""Tell real pictures from reconstructed ones, patch by patch."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

_SLOPE = 0.2


class PatchDiscriminator(nn.Module):
    """Map pictures [B, 3, S, S] to one logit a patch, [B, 1, h, w]; above 0 means real.

    Source: Isola et al. 2016 (arXiv:1611.07004). Normalised over each picture, where the original uses batch
    statistics: real and reconstructed pictures, and the tokenizer's pass and its own, then meet one function.
    """

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, stride=2, padding=1), nn.LeakyReLU(_SLOPE)]
        widths = [width * min(2**level, 8) for level in range(depth)]
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.GroupNorm(1, after), nn.LeakyReLU(_SLOPE)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 3, padding=1))

    def forward(self, pictures: Tensor) -> Tensor:
        """Judge every patch."""
        return self.layers(pictures).float()


def hinge(real: Tensor, made: Tensor) -> Tensor:
    """Compute the discriminator's loss: 1 for logits of 0, 0 once both kinds are told apart by a margin of 1."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + made).mean())
