"""A world small enough for unit tests: random models saved in the real folder formats, a few scenes."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from prx import prepare
from prx.config import RunConfig, parse_run_config

SIZE, WORDS = 16, ("red", "green", "blue", "circle", "square", "a", "on", "grey")
BLOCKS = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
CONV = {**BLOCKS, "block_out_channels": (8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4}
STAGES = {"block_types": ("ResBlock", "ResBlock", "EfficientViTBlock"), "block_out_channels": (8, 8, 16)}
STAGES |= {"layers_per_block": (1, 1, 1), "qkv_multiscales": ((), (), (5,))}
DC = {f"{side}_{key}": value for side in ("encoder", "decoder") for key, value in STAGES.items()}
VIT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": SIZE, "patch_size": 4}


def write_images(folder: Path, num: int, seed: int) -> None:
    """Write one parquet shard of noise images with captions."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    rows: dict[str, list[Any]] = {"image": [], "caption_long": [], "caption_short": [], "attributes": []}
    for _ in range(num):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)).save(buffer, "PNG")
        words = rng.choice(WORDS, size=int(rng.integers(2, 6)))
        rows["image"].append(buffer.getvalue())
        rows["caption_long"].append(" ".join(words))
        rows["caption_short"].append(str(words[0]))
        rows["attributes"].append(json.dumps({"colour": str(words[0])}))
    pq.write_table(pa.table(rows), folder / "part-00000.parquet")


def write_models(root: Path) -> None:
    """Save one random model of every role."""
    from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderKLFlux2
    from transformers import (
        Dinov2WithRegistersConfig,
        Dinov2WithRegistersModel,
        DINOv3ViTConfig,
        DINOv3ViTModel,
    )

    torch.manual_seed(0)
    AutoencoderKL(**CONV, latent_channels=4, scaling_factor=0.7, shift_factor=0.1).save_pretrained(root / "kl")
    flux2 = AutoencoderKLFlux2(**CONV, latent_channels=8)
    flux2.bn.running_mean.normal_()
    flux2.bn.running_var.uniform_(0.5, 2.0)
    flux2.save_pretrained(root / "flux2")
    v2 = Dinov2WithRegistersConfig(**VIT, mlp_ratio=2, num_register_tokens=2)
    Dinov2WithRegistersModel(v2).save_pretrained(root / "dinov2")
    v3 = DINOv3ViTConfig(**VIT, intermediate_size=32, num_register_tokens=2)
    DINOv3ViTModel(v3).save_pretrained(root / "dinov3")
    write_text_encoder(root / "text")
    AutoencoderDC(**DC, latent_channels=8, attention_head_dim=4, scaling_factor=0.5).save_pretrained(root / "dc")


def write_text_encoder(folder: Path) -> None:
    """Save a random T5Gemma encoder with a word-level tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, T5GemmaConfig, T5GemmaEncoderModel

    vocabulary = {word: i for i, word in enumerate(("<pad>", "<eos>", "<unk>", *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )
    fast.save_pretrained(folder)
    module = {
        "vocab_size": len(vocabulary), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "eos_token_id": 1,
    }  # fmt: skip
    config = T5GemmaConfig(encoder=module, decoder=module, is_encoder_decoder=False, vocab_size=len(vocabulary))
    T5GemmaEncoderModel(config).save_pretrained(folder)


class World:
    """Folders of the tiny world and configurations over them."""

    def __init__(self, root: Path) -> None:
        self.root, self.cache = root, root / "cache"
        write_images(root / "train", 48, seed=0)
        write_images(root / "reference", 16, seed=1)
        write_models(root)

    def settings(self, **changes: Any) -> dict[str, Any]:
        """Give the mapping of a run; top-level keys can be replaced."""
        found: dict[str, Any] = {
            "steps": 4, "batch_size": 8, "warmup_steps": 2, "grad_clip": 1.0, "precision": "fp32",
            "data": {
                "train": str(self.root / "train"), "reference": str(self.root / "reference"), "image_size": SIZE,
                "attributes_column": "attributes",
            },
            "text": {"encoder": str(self.root / "text"), "max_tokens": 8},
            "tokenizer": {"use": "autoencoder", "path": str(self.root / "kl")},
            "denoiser": {"width": 32, "depth": 2, "heads": 2, "patch_size": 1},
            "optimizer": {"use": "adamw", "lr": 1e-3, "eps": 1e-8},
            "sampling": {"num_steps": 2, "guidance_scale": 2.0},
            "evaluation": {
                "every": 2, "num_samples": 8, "batch_size": 4, "grid": 4,
                "clip": None, "dino": None,
            },
            "infrastructure": {"threads": 1, "device": "cpu"},
        }  # fmt: skip
        return found | changes

    def config(self, **changes: Any) -> RunConfig:
        """Give a validated run whose caches are encoded."""
        config = parse_run_config(self.settings(**changes))
        prepare.prepare([config], self.cache, lambda what, done, total: None)
        return config

    def repa(self, **changes: Any) -> dict[str, Any]:
        """Give the settings of a REPA term."""
        return {"use": "repa", "teacher": str(self.root / "dinov2"), "layer": 0, "weight": 0.5} | changes
