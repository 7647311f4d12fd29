"""Embed captions with CLIP's text tower, and score how well images answer them.

Shape letters: N images, each with its caption, d projected width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from evaluation import weights

TOKENIZER_FILE = "tokenizer.json"
BATCH_SIZE = 64


def has_text_tower(path: str | Path) -> bool:
    """Say whether a CLIP folder or hub id holds a text tower beside the image tower, and its tokenizer."""
    folder = weights.resolve_folder(path)
    full = (folder / weights.CONFIG_FILE).is_file() and weights.read_config(folder).get("model_type") == "clip"
    return full and (folder / TOKENIZER_FILE).is_file()


@torch.no_grad()
def embed_captions(path: str | Path, captions: Sequence[str], *, device: str | torch.device = "cpu") -> Tensor:
    """Return one projected embedding of unit length per caption; what exceeds the model's length is cut off.

    Shapes: float32 [N, d], on the CPU.
    Raises: FileNotFoundError naming a missing file; ValueError for a folder without a text tower.
    """
    from transformers import AutoTokenizer, CLIPConfig, CLIPTextModelWithProjection

    folder = weights.checked_folder(path, extra_files=(TOKENIZER_FILE,))
    if not has_text_tower(folder):
        raise ValueError(f"{folder / weights.CONFIG_FILE}: clip_score needs a text tower (model_type clip), got none")
    full = CLIPConfig.from_pretrained(folder, local_files_only=True)
    settings = full.text_config
    settings.projection_dim = full.projection_dim
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = weights.load_model(CLIPTextModelWithProjection, folder, config=settings).to(device)
    found = []
    for start in range(0, len(captions), BATCH_SIZE):
        texts = list(captions[start : start + BATCH_SIZE])
        length = settings.max_position_embeddings
        inputs = tokenizer(texts, truncation=True, max_length=length, padding=True, return_tensors="pt").to(device)
        rows = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).text_embeds
        found.append(F.normalize(rows.float(), dim=1).cpu())
    return torch.cat(found)


def clip_score(images: Tensor, captions: Tensor) -> tuple[float, float]:
    """Return 100 times the mean cosine between images and their captions, and its standard error over the images.

    Shapes: both [N, d], rows of any length, in one order.
    Raises: ValueError for unequal shapes or fewer than two images.
    Source: Hessel et al. 2021, arXiv 2104.08718, with the factor 100 and without clipping single images at zero, as
        torchmetrics has it.
    """
    if images.shape != captions.shape or len(images) < 2:
        got = f"{list(images.shape)} and {list(captions.shape)}"
        raise ValueError(f"clip_score: images and captions must have equal shapes of at least 2 rows, got {got}")
    scores = 100 * F.cosine_similarity(images.double(), captions.double(), dim=1)
    return float(scores.mean()), float(scores.std()) / math.sqrt(len(scores))
