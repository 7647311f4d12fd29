"""(kind, name) -> technique class, imported on use so that optional packages stay optional.

Adding a technique is one file in `prx/techniques/` and one line here.
"""

from __future__ import annotations

import difflib
import importlib
from functools import lru_cache
from typing import Any

TECHNIQUES: dict[tuple[str, str], str] = {
    ("objective", "velocity"): "prx.techniques.velocity:Velocity",
    ("objective", "x_prediction"): "prx.techniques.x_prediction:XPrediction",
    ("tokenizer", "autoencoder"): "prx.techniques.autoencoder:Autoencoder",
    ("tokenizer", "pixels"): "prx.techniques.pixels:Pixels",
    ("tokenizer", "repa_e"): "prx.techniques.repa_e:RepaE",
    ("optimizer", "adamw"): "prx.techniques.adamw:AdamW",
    ("optimizer", "muon"): "prx.techniques.muon:Muon",
    ("loss", "repa"): "prx.techniques.repa:Repa",
    ("loss", "irepa"): "prx.techniques.irepa:IRepa",
    ("loss", "attention_alignment"): "prx.techniques.attention_alignment:AttentionAlignment",
    ("loss", "lpips"): "prx.techniques.lpips:Lpips",
    ("loss", "p_dino"): "prx.techniques.p_dino:PDino",
    ("loss", "contrastive"): "prx.techniques.contrastive:Contrastive",
    ("routing", "tread"): "prx.techniques.tread:Tread",
    ("routing", "sprint"): "prx.techniques.sprint:Sprint",
}

KINDS = ("objective", "tokenizer", "optimizer", "loss", "routing")


def names(kind: str) -> list[str]:
    """List the techniques of one kind."""
    return sorted(name for k, name in TECHNIQUES if k == kind)


def choices(value: Any, allowed: list[str]) -> str:
    """Say what was given, what is allowed, and what was probably meant."""
    close = difflib.get_close_matches(str(value), allowed, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return f"must be one of {', '.join(allowed) or 'none yet'}; got {value!r}{hint}"


@lru_cache
def resolve(kind: str, name: str) -> type[Any]:
    """Import the class of a technique.

    Raises:
        ValueError: No technique of that kind has that name.
    """
    target = TECHNIQUES.get((kind, name))
    if target is None:
        raise ValueError(choices(name, names(kind)))
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)
