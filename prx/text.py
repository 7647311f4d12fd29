"""Frozen text encoder and its null prompt."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prx import loaders

VERSION = 1


def identity(path: str, max_tokens: int) -> str:
    """Name weights and tokenisation, for cache keys."""
    return f"text-v{VERSION}:{loaders.identity(path)}:max_tokens={max_tokens}"


def text_width(path: str) -> int:
    """Read the width of the embeddings without loading weights."""
    found = loaders.read_config(path)
    inner = found.get("encoder") if isinstance(found.get("encoder"), dict) else found
    return int(inner["hidden_size"])  # type: ignore[index]


class TextEncoder:
    """Last hidden state of a T5Gemma encoder, as PRX conditions on it.

    The null prompt of caption dropout and guidance is the encoded empty string, not zeros.
    """

    def __init__(self, path: str, max_tokens: int, device: torch.device) -> None:
        from transformers import AutoTokenizer, T5GemmaEncoderModel

        target = loaders.resolve(path)
        local = loaders.options(target)["local_files_only"]
        self.tokenizer = AutoTokenizer.from_pretrained(target, local_files_only=local, padding_side="right")
        model = T5GemmaEncoderModel.from_pretrained(target, dtype=torch.float32, **loaders.options(target))
        self.model = model.eval().requires_grad_(False).to(device)
        self.max_tokens = max_tokens
        self.device = device

    def lengths(self, captions: Sequence[str]) -> list[int]:
        """Count tokens of each caption, at most `max_tokens`."""
        ids = self.tokenizer(list(captions), truncation=True, max_length=self.max_tokens)["input_ids"]
        return [len(row) for row in ids]

    @torch.no_grad()
    def encode(self, captions: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
        """Encode captions, padded to `length`: embeddings [B, L, E] and mask [B, L], True at tokens."""
        inputs = self.tokenizer(
            list(captions), truncation=True, max_length=min(length, self.max_tokens), padding="max_length",
            return_tensors="pt",
        ).to(self.device)  # fmt: skip
        mask = inputs["attention_mask"].bool()
        hidden = self.model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        return hidden.last_hidden_state, mask
