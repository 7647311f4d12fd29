"""Frozen text encoder and its null prompt."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prx import loaders, modelfiles
from prx.errors import UserError

VERSION = 2
MODEL_TYPE = "t5gemma"


def identity(path: str, max_tokens: int) -> str:
    """Name weights and tokenisation, for cache keys."""
    return f"text-v{VERSION}:{loaders.identity(path)}:max_tokens={max_tokens}"


def text_width(path: str) -> int:
    """Read the width of the embeddings without loading weights.

    Raises:
        UserError: The folder holds no text encoder.
    """
    found = loaders.read_config(path)
    if found.get("model_type") != MODEL_TYPE:
        held = found.get("model_type") or found.get("_class_name")
        raise UserError(f"{path!r} must hold a text encoder with model_type {MODEL_TYPE!r}, got {held!r}")
    inner = found.get("encoder")
    if not isinstance(inner, dict) or "hidden_size" not in inner:
        raise UserError(f"{path!r} holds no text encoder: its config.json has no encoder.hidden_size")
    return int(inner["hidden_size"])


class TextEncoder:
    """Last hidden state of a T5Gemma encoder, as PRX conditions on it.

    The null prompt of caption dropout and guidance is the encoded empty string, not zeros.
    """

    def __init__(self, path: str, max_tokens: int, device: torch.device) -> None:
        from transformers import AutoTokenizer, T5GemmaEncoderModel

        text_width(path)  # refuses other models before their files are read
        folder = loaders.folder(path)
        modelfiles.read_json(folder / "tokenizer.json", loaders.place(path).how)
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, padding_side="right")
        except (OSError, ValueError) as error:
            raise UserError(f"{path!r}: the text tokenizer in {folder} cannot be loaded ({error})") from error
        if not self.tokenizer("")["input_ids"]:
            rule = "its tokenizer must give the empty caption a token, such as <bos>, got none"
            raise UserError(f"{path!r}: {rule}; no attention would be left to what stands for a dropped caption")
        # The published folders hold encoder and decoder; the class takes the encoder only when told so.
        model = loaders.load(T5GemmaEncoderModel, path, dtype=torch.float32, is_encoder_decoder=False)
        self.model = model.to(device)
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
