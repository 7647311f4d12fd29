"""Train the text encoder and the contrastive image-text pair."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    T5GemmaConfig,
    T5GemmaEncoderModel,
    T5GemmaModuleConfig,
)

from prx.embedded.scenes import (
    ATTRIBUTES,
    IMAGE_SIZE,
    Scene,
    caption_long,
    caption_short,
    object_phrase,
)
from prx.embedded.training.common import (
    CLIP,
    Batch,
    Job,
    Record,
    attribute_accuracy,
    attribute_labels,
    attribute_loss,
    fit,
    held_out,
    make_batch,
    melt,
    normalise,
    num_parameters,
    roughen,
    save,
    save_preprocessor,
)
from prx.embedded.training.words import EOS_ID, MAX_LENGTH, PAD_ID, caption_tokenizer, num_words

_BATCH = 128
_WIDTH = 64
_TEXT_SEED, _CLIP_SEED = 41, 42
_IGNORED = -100
_OWN = ("shape", "colour", "size", "position")


def build_text_encoder(job: Job) -> Record:
    """Train tokens to know their own object and the end token to know the scene, from both caption kinds."""
    torch.manual_seed(_TEXT_SEED)
    model, steps = T5GemmaEncoderModel(_text_config()), job.steps(800)
    scene, own = nn.Linear(_WIDTH, len(attribute_labels())), nn.Linear(_WIDTH, _own_size())
    tokenizer = caption_tokenizer()

    def loss_of(step: int) -> Tensor:
        batch = make_batch(_TEXT_SEED, step, _BATCH)
        half = _BATCH // 2
        return _text_loss(model, tokenizer, (scene, own), batch, long=half)

    model.train()
    loss = fit((model, scene, own), loss_of, steps=steps, lr=2e-3, muon_lr=5e-3, label="text_encoder")
    folder = job.out / "text_encoder"
    save(model, folder)
    tokenizer.save_pretrained(folder)
    model = T5GemmaEncoderModel.from_pretrained(folder, dtype=torch.float32).eval()
    batch = held_out(job.scenes(512))
    with torch.no_grad():
        states, ends = _encode(model, tokenizer, [caption_long(item) for item in batch.scenes])
        accuracy = attribute_accuracy(scene(states[torch.arange(len(ends)), ends]), batch.attributes)
    return {
        "objective": "end token: scene attributes; an object's tokens: its attributes; heads discarded",
        "steps": steps,
        "batch": _BATCH,
        "seed": _TEXT_SEED,
        "parameters": num_parameters(model),
        "train_loss": loss,
        "accuracy_long_caption": accuracy,
    }


def _text_config() -> T5GemmaConfig:
    module = T5GemmaModuleConfig(
        vocab_size=num_words(),
        hidden_size=_WIDTH,
        intermediate_size=3 * _WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=_WIDTH // 2,
        query_pre_attn_scalar=_WIDTH // 2,
        max_position_embeddings=64,
        sliding_window=64,
        initializer_range=0.1,
        attn_logit_softcapping=None,
        pad_token_id=PAD_ID,
        eos_token_id=EOS_ID,
        bos_token_id=None,
    )
    # Two copies: the config marks its decoder's module in place, which would make a shared encoder causal.
    encoder, decoder = module.to_dict(), module.to_dict()
    return T5GemmaConfig(encoder=encoder, decoder=decoder, is_encoder_decoder=False, vocab_size=num_words())


def _encode(model: Any, tokenizer: Any, captions: list[str]) -> tuple[Tensor, Tensor]:
    """Give the token states and each caption's end position.

    Shapes: [B, L, D] and int64 [B].
    """
    tokens = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
    mask = tokens["attention_mask"]
    states = model(input_ids=tokens["input_ids"], attention_mask=mask).last_hidden_state
    return states, mask.sum(1) - 1


def _text_loss(model: Any, tokenizer: Any, heads: tuple[nn.Module, nn.Module], batch: Batch, *, long: int) -> Tensor:
    """Supervise the end token with the scene and each phrase with its object; the first `long` are long."""
    captions = [caption_long(item) for item in batch.scenes[:long]]
    captions += [caption_short(item) for item in batch.scenes[long:]]
    states, ends = _encode(model, tokenizer, captions)
    target = batch.attributes.clone()
    for index, name in enumerate(ATTRIBUTES):
        if not name.endswith(("shape", "colour")):
            target[long:, index] = _IGNORED
    loss = attribute_loss(heads[0](states[torch.arange(len(ends)), ends]), target)
    owner = torch.stack([_owners(item, long=row < long) for row, item in enumerate(batch.scenes)])
    return loss + _own_loss(heads[1](states), owner, target)


def _owners(scene: Scene, *, long: bool) -> Tensor:
    """Say which object each token describes, -1 for none.

    Shapes: int64 [MAX_LENGTH].
    """
    owner = torch.full((MAX_LENGTH,), -1)
    begin = 0
    for index, item in enumerate(scene.objects):
        length = len(object_phrase(item).split()) if long else 2
        owner[begin : begin + length] = index
        begin += length + 1
    return owner


def _own_size() -> int:
    return sum(len(ATTRIBUTES[f"first_{name}"]) for name in _OWN)


def _own_loss(logits: Tensor, owner: Tensor, target: Tensor) -> Tensor:
    """Average the cross-entropy of every phrase token over its own object's attributes.

    Shapes: logits [B, L, 25], owner int64 [B, L], target int64 [B, 9].
    """
    rows, columns = torch.nonzero(owner >= 0, as_tuple=True)
    blocks = logits[rows, columns].split([len(ATTRIBUTES[f"first_{name}"]) for name in _OWN], dim=-1)
    first = 1 + len(_OWN) * owner[rows, columns]
    losses = [F.cross_entropy(block, target[rows, first + i]) for i, block in enumerate(blocks)]
    return torch.stack(losses).mean()


def build_clip(job: Job) -> Record:
    """Train image and text towers contrastively on long captions."""
    torch.manual_seed(_CLIP_SEED)
    model, steps, tokenizer = CLIPModel(_clip_config()), job.steps(1500), caption_tokenizer()
    rng = torch.Generator().manual_seed(_CLIP_SEED)

    def loss_of(step: int) -> Tensor:
        batch = make_batch(_CLIP_SEED, step, _BATCH)
        logits = _similarity(model, tokenizer, roughen(melt(batch.images, rng), rng), batch.scenes)
        match = torch.arange(_BATCH)
        return (F.cross_entropy(logits, match) + F.cross_entropy(logits.T, match)) / 2

    model.train()
    loss = fit((model,), loss_of, steps=steps, lr=2e-3, muon_lr=8e-3, label="clip")
    folder = job.out / "clip"
    save(model, folder)
    tokenizer.save_pretrained(folder)
    save_preprocessor(folder, CLIP, "CLIPImageProcessor", crop=True)
    model = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
    facts = {
        "objective": "symmetric contrastive, long captions; images bent, blurred and noised",
        "steps": steps,
        "batch": _BATCH,
        "seed": _CLIP_SEED,
    }
    return {
        **facts,
        "parameters": num_parameters(model),
        "train_loss": loss,
        "retrieval": _retrieval(model, tokenizer, job),
    }


def _clip_config() -> CLIPConfig:
    tower = {
        "hidden_size": _WIDTH,
        "intermediate_size": 3 * _WIDTH,
        "num_attention_heads": 2,
        "projection_dim": _WIDTH,
    }
    words = {"vocab_size": num_words(), "max_position_embeddings": MAX_LENGTH, "num_hidden_layers": 2}
    special = {"pad_token_id": PAD_ID, "eos_token_id": EOS_ID, "bos_token_id": EOS_ID}
    return CLIPConfig(
        text_config={**tower, **words, **special},
        vision_config={**tower, "image_size": IMAGE_SIZE, "patch_size": 4, "num_hidden_layers": 3},
        projection_dim=_WIDTH,
    )


def _similarity(model: Any, tokenizer: Any, images: Tensor, scenes: Sequence[Scene]) -> Tensor:
    captions = [caption_long(item) for item in scenes]
    tokens = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
    output = model(
        input_ids=tokens["input_ids"],
        attention_mask=tokens["attention_mask"],
        pixel_values=normalise(images, CLIP),
    )
    return output.logits_per_image


@torch.no_grad()
def _retrieval(model: Any, tokenizer: Any, job: Job) -> dict[str, float]:
    """Measure top-1 retrieval among held-out pairs, beside chance."""
    batch = held_out(job.scenes(512))
    logits = _similarity(model, tokenizer, batch.images, batch.scenes)
    match = torch.arange(len(logits))
    return {
        "candidates": len(logits),
        "image_to_text_top1": (logits.argmax(1) == match).float().mean().item(),
        "text_to_image_top1": (logits.argmax(0) == match).float().mean().item(),
        "chance": 1 / len(logits),
    }
