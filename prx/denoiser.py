"""The PRX transformer, walked block by block so that features can be tapped and tokens routed.

`diffusers.PRXTransformer2DModel` holds the parameters; with no tap and no route the walk equals its
`forward` bit for bit.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from diffusers import PRXTransformer2DModel
from diffusers.models.transformers.transformer_prx import get_image_ids, img2seq, seq2img
from torch import Tensor, nn

from prx.config import DenoiserConfig
from prx.interfaces import Tap, TokenRouter, gather


def build(config: DenoiserConfig, channels: int, text_width: int) -> PRXTransformer2DModel:
    """Build a denoiser whose output starts at exactly zero, as PRX's does and diffusers' does not."""
    half = config.width // config.heads // 2
    model = PRXTransformer2DModel(
        in_channels=channels, patch_size=config.patch_size, context_in_dim=text_width,
        hidden_size=config.width, mlp_ratio=config.mlp_ratio, num_heads=config.heads, depth=config.depth,
        axes_dim=[half, half], theta=config.theta,
    )  # fmt: skip
    for layer in (model.final_layer.linear, model.final_layer.adaLN_modulation[1]):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return model


def walk(
    model: PRXTransformer2DModel,
    noised: Tensor,
    t: Tensor,
    text: Tensor,
    mask: Tensor,
    *,
    tapped: Collection[int] = (),
    router: TokenRouter | None = None,
    kept: Tensor | None = None,
) -> tuple[Tensor, dict[int, Tap]]:
    """Run the denoiser.

    Shapes: noised [B, C, H, W], t [B] in [0, 1], text [B, L, text width], mask [B, L] (True at tokens),
    kept [B, K] (the router's choice; None runs dense). Returns the output [B, C, H, W] and the taps.
    """
    dtype = model.txt_in.weight.dtype
    context = model.txt_in(text.to(dtype))
    tokens = model.img_in(img2seq(noised.to(dtype), model.patch_size))
    batch, _, height, width = noised.shape
    position = model.pe_embedder(get_image_ids(batch, height, width, model.patch_size, noised.device))
    time = model._compute_timestep_embedding(t, dtype=tokens.dtype)
    taps: dict[int, Tap] = {}
    routed = router is not None and kept is not None
    full, full_position, index = tokens, position, None
    for number, block in enumerate(model.blocks):
        if routed and router is not None and number == router.start:
            full, index = tokens, kept
            tokens, position = gather(tokens, index), _gather_position(position, index)
        tokens = block(tokens, context, time, position, mask)
        if number in tapped:
            taps[number] = Tap(tokens, index)
        if routed and router is not None and number == router.end and index is not None:
            tokens, position, index = router.merge(tokens, full, index), full_position, None
    output = seq2img(model.final_layer(tokens, time), model.patch_size, noised.shape)
    return output, taps


def _gather_position(position: Tensor, index: Tensor | None) -> Tensor:
    """Take rotary rows [B, 1, N, head/2, 2, 2] at index [B, K]."""
    assert index is not None
    rows = index.view(*index.shape, 1, 1, 1).expand(-1, -1, *position.shape[3:])
    return torch.gather(position.squeeze(1), 1, rows).unsqueeze(1)
