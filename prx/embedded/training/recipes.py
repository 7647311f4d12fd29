"""Name the training function of every role and which roles it needs to have been trained before."""

from __future__ import annotations

from collections.abc import Callable

from prx.embedded.training import classifiers, end_to_end, teachers, text_image, tokenizers
from prx.embedded.training.common import Job, Record

RECIPES: dict[str, Callable[[Job], Record]] = {
    "flux": tokenizers.build_flux,
    "dinov2": teachers.build_dinov2,
    "dinov3": teachers.build_dinov3,
    "reader": classifiers.build_reader,
    "clip": text_image.build_clip,
    "text_encoder": text_image.build_text_encoder,
    "inception": classifiers.build_inception,
    "dino_mmd": teachers.build_dino_mmd,
    "repa_e": end_to_end.build_repa_e,
    "flux2": tokenizers.build_flux2,
}
NEEDS: dict[str, tuple[str, ...]] = {"repa_e": ("flux", "dinov2"), "flux2": ("dinov3",)}
