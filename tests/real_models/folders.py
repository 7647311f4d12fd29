"""Small random models of the real classes, in the folders that the published ones come in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "resample": 3}
WORDS = ("red", "green", "blue", "circle", "square", "a", "on", "grey")
DOWN, UP = "DownEncoderBlock2D", "UpDecoderBlock2D"


def write_json(folder: Path, name: str, **content: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(content))


def clip(folder: Path) -> None:
    """openai/clip-vit-large-patch14-336: text and image towers, patches of 14 in 336 pixels."""
    from transformers import CLIPConfig, CLIPModel

    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = tower | {"image_size": 336, "patch_size": 14, "projection_dim": 24}
    text = tower | {"vocab_size": 20, "projection_dim": 24, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=24)).save_pretrained(folder)
    write_json(
        folder, "preprocessor_config.json", crop_size=336, do_center_crop=True, do_normalize=True, do_resize=True,
        feature_extractor_type="CLIPFeatureExtractor", image_mean=[0.48145466, 0.4578275, 0.40821073],
        image_std=[0.26862954, 0.26130258, 0.27577711], resample=3, size=336,
    )  # fmt: skip


def clip_vision(folder: Path) -> None:
    """The image tower alone, as CLIPVisionModelWithProjection saves it."""
    from transformers import CLIPVisionModelWithProjection

    whole = folder.with_name("clip")
    CLIPVisionModelWithProjection.from_pretrained(whole).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_bytes((whole / "preprocessor_config.json").read_bytes())


def dinov2(folder: Path) -> None:
    """facebook/dinov2-with-registers-large: patches of 14, trained at 518 pixels, four registers."""
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    config = Dinov2WithRegistersConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=518, patch_size=14,
        num_register_tokens=4,
    )  # fmt: skip
    Dinov2WithRegistersModel(config).save_pretrained(folder)
    write_json(
        folder, "preprocessor_config.json", crop_size={"height": 224, "width": 224}, do_center_crop=True,
        image_processor_type="BitImageProcessor", size={"shortest_edge": 256}, **IMAGENET,
    )  # fmt: skip


def dinov3(folder: Path) -> None:
    """facebook/dinov3-vitl16-pretrain-lvd1689m: patches of 16, four registers, rotary positions."""
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    config = DINOv3ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=224,
        patch_size=16, num_register_tokens=4,
    )  # fmt: skip
    DINOv3ViTModel(config).save_pretrained(folder)
    size = {"height": 224, "width": 224}
    write_json(
        folder, "preprocessor_config.json", image_processor_type="DINOv3ViTImageProcessorFast", size=size, **IMAGENET
    )


def t5gemma(folder: Path) -> None:
    """google/t5gemma-2b-2b-ul2: encoder and decoder in several shards, Gemma's tokenizer with <bos>."""
    from transformers import T5GemmaConfig, T5GemmaForConditionalGeneration

    tokenizer = _gemma_tokenizer()
    tokenizer.save_pretrained(folder)
    module = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "pad_token_id": 0, "eos_token_id": 1,
        "bos_token_id": 2,
    }  # fmt: skip
    config = T5GemmaConfig(encoder=module, decoder=module, vocab_size=len(tokenizer))
    T5GemmaForConditionalGeneration(config).to(torch.bfloat16).save_pretrained(folder, max_shard_size="60KB")


def _gemma_tokenizer() -> Any:
    from tokenizers.processors import TemplateProcessing
    from transformers import GemmaTokenizer

    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += sorted({letter for word in WORDS for letter in word})
    merges = [(word[:i], word[i]) for word in WORDS for i in range(1, len(word))]
    pieces += [pair[0] + pair[1] for pair in merges]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = GemmaTokenizer(vocab=vocabulary, merges=list(dict.fromkeys(merges)))
    template = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    tokenizer.backend_tokenizer.post_processor = template
    return tokenizer


def flux(folder: Path) -> None:
    """black-forest-labs/FLUX.1-dev: a pipeline whose folder `vae` is an AutoencoderKL, 8x, 16 channels."""
    from diffusers import AutoencoderKL

    AutoencoderKL(
        down_block_types=(DOWN,) * 4, up_block_types=(UP,) * 4, block_out_channels=(8,) * 4, norm_num_groups=4,
        layers_per_block=1, latent_channels=16, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False,
        use_post_quant_conv=False, sample_size=1024,
    ).save_pretrained(folder / "vae")  # fmt: skip
    write_json(folder, "model_index.json", _class_name="FluxPipeline", vae=["diffusers", "AutoencoderKL"])


def flux2(folder: Path) -> None:
    """black-forest-labs/FLUX.2-dev: the same, with 32 channels and a batch norm over patches."""
    from diffusers import AutoencoderKLFlux2

    model = AutoencoderKLFlux2(
        down_block_types=(DOWN,) * 4, up_block_types=(UP,) * 4, block_out_channels=(8,) * 4, norm_num_groups=4,
        layers_per_block=1,
    )  # fmt: skip
    model.bn.running_mean.normal_()
    model.bn.running_var.uniform_(0.5, 2.0)
    model.save_pretrained(folder / "vae")
    write_json(folder, "model_index.json", _class_name="Flux2Pipeline", vae=["diffusers", "AutoencoderKLFlux2"])


def dc_ae(folder: Path) -> None:
    """mit-han-lab/dc-ae-f32c32-sana-1.0-diffusers: 32x, 32 channels, no posterior."""
    from diffusers import AutoencoderDC

    none, one, widths = ((),) * 6, (1,) * 6, (8,) * 5 + (32,)
    AutoencoderDC(
        latent_channels=32, scaling_factor=0.41407, encoder_block_types=("ResBlock",) * 6,
        decoder_block_types=("ResBlock",) * 6, encoder_block_out_channels=widths, decoder_block_out_channels=widths,
        encoder_layers_per_block=one, decoder_layers_per_block=one, encoder_qkv_multiscales=none,
        decoder_qkv_multiscales=none,
    ).save_pretrained(folder)  # fmt: skip


def prx(folder: Path) -> None:
    """Photoroom/prx-256-t2i: a pipeline whose folder `transformer` is a denoiser, here in bfloat16."""
    from diffusers import PRXTransformer2DModel

    model = PRXTransformer2DModel(
        in_channels=16, patch_size=1, context_in_dim=32, hidden_size=32, mlp_ratio=3.5, num_heads=2, depth=2,
        axes_dim=[8, 8],
    )  # fmt: skip
    model.to(torch.bfloat16).save_pretrained(folder / "transformer")
    write_json(
        folder, "model_index.json", _class_name="PRXPipeline", transformer=["diffusers", "PRXTransformer2DModel"]
    )


WRITERS = (clip, clip_vision, dinov2, dinov3, t5gemma, flux, flux2, dc_ae, prx)


def write_all(root: Path) -> Path:
    """Write every model to a folder of its name."""
    torch.manual_seed(0)
    for write in WRITERS:
        write(root / write.__name__)
    return root
