"""A procedural captioned world and small trained weights for every role; needs no network and no GPU."""

from __future__ import annotations

from pathlib import Path

ROLES = (
    *("flux", "flux2", "repa_e"),
    *("dinov2", "dinov3"),
    *("text_encoder", "clip"),
    *("dino_mmd", "inception", "reader"),
)


def weights_folder(role: str) -> Path:
    """Give the folder of a role's trained weights, in the format that `from_pretrained` reads.

    Raises:
        ValueError: There is no such role.
    """
    if role not in ROLES:
        raise ValueError(f"embedded role must be one of {', '.join(ROLES)}, got {role!r}")
    return Path(__file__).parent / "weights" / role
