"""The PRX transformer, walked block by block so that features can be tapped and tokens routed.

`diffusers.PRXTransformer2DModel` holds the parameters; with no tap and no route the walk equals its
`forward` bit for bit.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from diffusers import PRXTransformer2DModel
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.models.transformers.transformer_prx import (
    MLPEmbedder,
    PRXResolutionEmbedder,
    apply_rope,
    get_image_ids,
    img2seq,
    seq2img,
)
from torch import Tensor, nn

from prx.config import DenoiserConfig
from prx.interfaces import Route, Tap, TokenRouter, gather


def build(config: DenoiserConfig, channels: int, text_width: int) -> PRXTransformer2DModel:
    """Build a denoiser whose output starts at exactly zero, as PRX's does and diffusers' does not."""
    half = config.width // config.heads // 2
    model = PRXTransformer2DModel(
        in_channels=channels, patch_size=config.patch_size, context_in_dim=text_width,
        hidden_size=config.width, mlp_ratio=config.mlp_ratio, num_heads=config.heads, depth=config.depth,
        axes_dim=[half, half], theta=config.theta, bottleneck_size=config.bottleneck,
    )  # fmt: skip
    if config.resolution == "vec":
        _add_resolution(model)
    for layer in (model.final_layer.linear, model.final_layer.adaLN_modulation[1]):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return model


def _add_resolution(model: PRXTransformer2DModel) -> None:
    """Add diffusers' resolution embedder last, so that the other weights stay those of a model without it.

    Its last layer starts at zero, so that nothing changes before it is trained.
    """
    model.resolution_embedder = PRXResolutionEmbedder(model.hidden_size, max_period=model.time_max_period)
    model.register_to_config(resolution_embeds=True)
    last = model.resolution_embedder.mlp.out_layer
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)


class ResolutionTokens(nn.Module):
    """Tell the denoiser the latent's height and width by two tokens before the projected text.

    It lives beside the denoiser and not in it: diffusers knows no such tokens, and what it saves must
    load again. Keys take part in every softmax, so that even a fresh token changes the attention.
    Source: PRX's resolution-aware conditioning (Photoroom/PRX), mode "token"; no paper.
    """

    FREQUENCIES = 128

    def __init__(self, width: int) -> None:
        super().__init__()
        self.height = MLPEmbedder(self.FREQUENCIES, width)
        self.width = MLPEmbedder(self.FREQUENCIES, width)

    def forward(self, context: Tensor, mask: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Prepend the tokens of height and width: context [B, L + 2, D], mask [B, L + 2]."""
        sides = torch.tensor([height, width], dtype=torch.float32, device=context.device)
        waves = get_timestep_embedding(sides, self.FREQUENCIES, flip_sin_to_cos=True, downscale_freq_shift=0.0)
        waves = waves.to(self.height.in_layer.weight.dtype)
        tokens = torch.stack([self.height(waves[0]), self.width(waves[1])]).to(context.dtype)
        shown = torch.ones(len(mask), 2, dtype=mask.dtype, device=mask.device)
        return torch.cat([tokens.expand(len(context), -1, -1), context], dim=1), torch.cat([shown, mask], dim=1)


def walk(
    model: PRXTransformer2DModel,
    noised: Tensor,
    t: Tensor,
    text: Tensor,
    mask: Tensor,
    *,
    tapped: Collection[int] = (),
    attended: Collection[int] = (),
    router: TokenRouter | None = None,
    route: Route | None = None,
    until: int | None = None,
    resolution: ResolutionTokens | None = None,
) -> tuple[Tensor, dict[int, Tap]]:
    """Run the denoiser.

    Shapes: noised [B, C, H, W], t [B] in [0, 1], text [B, L, text width], mask [B, L] (True at tokens).
    Without a route every token runs; a router still merges. `until` ends after that block, with the taps
    alone; `resolution` puts its tokens before the text. Returns the output [B, C, H, W] and the taps.
    """
    dtype = model.txt_in.weight.dtype
    batch, _, height, width = noised.shape
    context = model.txt_in(text.to(dtype))
    if resolution is not None:
        context, mask = resolution(context, mask, height, width)
    tokens = model.img_in(img2seq(noised.to(dtype), model.patch_size))
    position = model.pe_embedder(get_image_ids(batch, height, width, model.patch_size, noised.device))
    time = _conditioning(model, t, height, width, tokens.dtype)
    taps: dict[int, Tap] = {}
    full, full_position, index = tokens, position, None
    for number, block in enumerate(model.blocks):
        if router is not None and number == router.start:
            full, index = tokens, route.kept if route is not None else None
            tokens, position = gather(tokens, index), _gather_position(position, index)
        logits = attention_logits(block, tokens, time, position) if number in attended else None
        if index is None or index.shape[1]:
            tokens = block(tokens, context, time, position, mask)
        if number in tapped or number in attended:
            taps[number] = Tap(tokens, index, logits)
        if number == until:
            return tokens, taps
        if router is not None and number == router.end:
            tokens, position, index = router.merge(tokens, full, route), full_position, None
    output = seq2img(model.final_layer(tokens, time), model.patch_size, noised.shape)
    return output, taps


def _conditioning(model: PRXTransformer2DModel, t: Tensor, height: int, width: int, dtype: torch.dtype) -> Tensor:
    """Embed the time [B], and the latent's size where the model is aware of it."""
    time = model._compute_timestep_embedding(t, dtype=dtype)
    if model.resolution_embedder is None:
        return time
    sides = (torch.full_like(t, side, dtype=torch.float32) for side in (height, width))
    return time + model.resolution_embedder(*sides, dtype=time.dtype)


def attention_logits(block: Any, tokens: Tensor, time: Tensor, position: Tensor) -> Tensor:
    """Compute a block's attention logits among image tokens, [B, heads, K, K], before any softmax.

    Fused attention does not show them, so queries and keys are computed once more.
    """
    (shift, scale, _), _ = block.modulation(time)
    attention = block.attention
    fused = attention.img_qkv_proj((1 + scale) * block.img_pre_norm(tokens) + shift)
    rows = fused.unflatten(-1, (3, attention.heads, attention.head_dim)).permute(2, 0, 3, 1, 4)
    query = apply_rope(attention.norm_q(rows[0]), position)
    key = apply_rope(attention.norm_k(rows[1]), position)
    return query @ key.transpose(-1, -2) * attention.head_dim**-0.5


def _gather_position(position: Tensor, index: Tensor | None) -> Tensor:
    """Take rotary rows [B, 1, N, head/2, 2, 2] at index [B, K]."""
    if index is None:
        return position
    rows = index.view(*index.shape, 1, 1, 1).expand(-1, -1, *position.shape[3:])
    return torch.gather(position.squeeze(1), 1, rows).unsqueeze(1)
