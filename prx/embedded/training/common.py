"""Share what every role's training needs: scene batches, the fitting loop, saving, linear probes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prx.embedded.scenes import ATTRIBUTES, IMAGE_SIZE, Scene, attributes, patch_labels, render, sample_scene

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
CLIP = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
HELD_OUT_SEED, PROBE_SEED = 990_001, 990_002
_QUICK_SHARE = 0.01

Record = dict[str, Any]


@dataclass(frozen=True)
class Batch:
    """Rendered scenes with their labels.

    Shapes: images float [B, 3, 32, 32] in [0, 1]; colours, shapes int64 [B, 64] per patch of a 8x8 grid;
        attributes int64 [B, 9] in the order of ATTRIBUTES.
    """

    scenes: tuple[Scene, ...]
    images: Tensor
    colours: Tensor
    shapes: Tensor
    attributes: Tensor


@dataclass(frozen=True)
class Job:
    """What one role's training is asked for: where to write, and whether a smoke run is enough."""

    out: Path
    quick: bool = False

    @property
    def work(self) -> Path:
        """Hold what several roles start from; removed once a build is done."""
        return self.out / ".work"

    def steps(self, full: int) -> int:
        """Shrink a number of steps for a smoke run."""
        return max(2, round(full * _QUICK_SHARE)) if self.quick else full

    def scenes(self, full: int) -> int:
        """Shrink a number of evaluation scenes for a smoke run."""
        return min(full, 64) if self.quick else full


def make_batch(seed: int, step: int, size: int) -> Batch:
    """Draw the scenes that belong to one training step; equal arguments give equal batches."""
    rng = np.random.default_rng([seed, step])
    scenes = tuple(sample_scene(rng) for _ in range(size))
    images = torch.from_numpy(np.stack([render(scene) for scene in scenes]))
    labels = [patch_labels(scene) for scene in scenes]
    return Batch(
        scenes=scenes,
        images=images.permute(0, 3, 1, 2).float() / 255,
        colours=torch.from_numpy(np.stack([colour.ravel() for colour, _ in labels])),
        shapes=torch.from_numpy(np.stack([shape.ravel() for _, shape in labels])),
        attributes=attribute_classes(scenes),
    )


def held_out(size: int) -> Batch:
    """Draw scenes that no training sees."""
    return make_batch(HELD_OUT_SEED, 0, size)


def attribute_classes(scenes: Iterable[Scene]) -> Tensor:
    """Turn attributes into class numbers.

    Shapes: int64 [B, 9].
    """
    rows = [attributes(scene) for scene in scenes]
    return torch.tensor([[values.index(row[name]) for name, values in ATTRIBUTES.items()] for row in rows])


def attribute_labels() -> list[str]:
    """Name every logit of a concatenated attribute head as `attribute=value`."""
    return [f"{name}={value}" for name, values in ATTRIBUTES.items() for value in values]


def split_heads(logits: Tensor) -> tuple[Tensor, ...]:
    """Cut concatenated logits into one block per attribute."""
    return logits.split([len(values) for values in ATTRIBUTES.values()], dim=-1)


def attribute_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Average the cross-entropy of every attribute."""
    losses = [F.cross_entropy(block, target[:, i]) for i, block in enumerate(split_heads(logits))]
    return torch.stack(losses).mean()


def attribute_accuracy(logits: Tensor, target: Tensor) -> dict[str, float]:
    """Measure the share of right answers per attribute."""
    blocks = split_heads(logits)
    return {
        name: (block.argmax(-1) == target[:, i]).float().mean().item()
        for i, (name, block) in enumerate(zip(ATTRIBUTES, blocks, strict=True))
    }


def normalise(images: Tensor, constants: dict[str, list[float]]) -> Tensor:
    """Apply a model's mean and deviation to images in [0, 1]."""
    mean = torch.tensor(constants["image_mean"]).view(1, 3, 1, 1)
    return (images - mean) / torch.tensor(constants["image_std"]).view(1, 3, 1, 1)


def roughen(images: Tensor, rng: torch.Generator) -> Tensor:
    """Blur a third of the images and add noise of a random strength, as generated pictures have."""
    size = (len(images), 1, 1, 1)
    blur = torch.rand(size, generator=rng) * (torch.rand(size, generator=rng) < 1 / 3)
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    mixed = torch.lerp(images, F.avg_pool2d(padded, 3, stride=1), blur)
    strength = 0.1 * torch.rand(size, generator=rng) ** 2
    return (mixed + strength * torch.randn(images.shape, generator=rng)).clamp(0, 1)


def melt(images: Tensor, rng: torch.Generator) -> Tensor:
    """Bend and blur half of the images until shapes are hard to tell, as a half-trained generator draws them.

    A network that has met such pictures places them between the shapes they might be; one that has not
    takes all of them for the same wrong shape, and a mean distance of its embeddings then measures that.
    """
    size = (len(images), 1, 1, 1)
    strength = 0.2 * torch.rand(size, generator=rng) * (torch.rand(size, generator=rng) < 1 / 2)
    waves = torch.randn(len(images), 2, 8, 8, generator=rng)
    shift = F.interpolate(waves, images.shape[-2:], mode="bicubic") * strength
    straight = F.affine_grid(torch.eye(2, 3).expand(len(images), 2, 3), list(images.shape), align_corners=False)
    bent = F.grid_sample(
        images, straight + shift.permute(0, 2, 3, 1), padding_mode="border", align_corners=False
    )
    blurred = F.avg_pool2d(F.pad(bent, (2, 2, 2, 2), mode="replicate"), 5, stride=1)
    return torch.lerp(bent, blurred, (4 * strength * torch.rand(size, generator=rng)).clamp(max=1))


def schedule(steps: int) -> Callable[[int], float]:
    """Give the learning-rate factor of a step: linear warm-up over 5 %, then cosine to zero."""
    warmup = max(1, steps // 20)

    def factor(step: int) -> float:
        return min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * step / steps)))

    return factor


def optimizers(modules: Sequence[nn.Module], lr: float, muon_lr: float) -> list[Any]:
    """Give Muon the matrices of transformer layers if it has a rate, AdamW all the rest."""
    named = [pair for module in modules for pair in module.named_parameters() if pair[1].requires_grad]
    hidden = [p for name, p in named if muon_lr and p.ndim == 2 and "layer" in name]
    chosen = {id(p) for p in hidden}
    rest = [p for _, p in named if id(p) not in chosen]
    found: list[Any] = [torch.optim.AdamW(rest, lr=lr, weight_decay=0.01)]
    if hidden:
        found.append(torch.optim.Muon(hidden, lr=muon_lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"))
    return found


def fit(
    modules: Sequence[nn.Module],
    loss_of: Callable[[int], Tensor],
    *,
    steps: int,
    lr: float,
    label: str,
    muon_lr: float = 0.0,
) -> float:
    """Minimise `loss_of(step)` and return the mean loss of the last tenth.

    Muon halves the steps that small transformers need here; `muon_lr` 0 leaves everything to AdamW.
    """
    return fit_with(optimizers(modules, lr, muon_lr), loss_of, steps=steps, label=label)


def fit_with(found: Sequence[Any], loss_of: Callable[[int], Tensor], *, steps: int, label: str) -> float:
    """Minimise `loss_of(step)` with given optimizers and return the mean loss of the last tenth."""
    decays = [torch.optim.lr_scheduler.LambdaLR(optimizer, schedule(steps)) for optimizer in found]
    losses: list[float] = []
    for step in range(steps):
        loss = loss_of(step)
        update(found, loss)
        for decay in decays:
            decay.step()
        losses.append(loss.item())
        report(label, step, steps, losses)
    return float(np.mean(losses[-max(1, steps // 10) :]))


def update(found: Sequence[Any], loss: Tensor) -> None:
    """Take one step, with AdamW's gradients clipped; Muon's updates do not depend on their norm."""
    for optimizer in found:
        optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_([p for group in found[0].param_groups for p in group["params"]], 1.0)
    for optimizer in found:
        optimizer.step()


def report(label: str, step: int, steps: int, losses: list[float]) -> None:
    """Print the mean loss ten times per training."""
    tenth = max(1, steps // 10)
    if (step + 1) % tenth == 0:
        print(f"{label}: step {step + 1}/{steps} loss {np.mean(losses[-tenth:]):.4f}", flush=True)


def save(model: Any, folder: Path) -> None:
    """Write a model's folder with half-precision weights that load as float32 by default."""
    model.eval().half().save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("_name_or_path", None)
    _load_as_float32(config)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _load_as_float32(config: dict[str, Any]) -> None:
    for key, value in config.items():
        if key in {"dtype", "torch_dtype"}:
            config[key] = "float32"
        elif isinstance(value, dict):
            _load_as_float32(value)


def save_preprocessor(folder: Path, constants: dict[str, list[float]], kind: str, *, crop: bool = False) -> None:
    """Write the preprocessor_config.json that belongs to a model's input."""
    square = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    sizes: dict[str, Any] = {"size": square}
    if crop:
        sizes = {"size": {"shortest_edge": IMAGE_SIZE}, "crop_size": square, "do_center_crop": True}
    config = {
        "image_processor_type": kind,
        **sizes,
        **constants,
        **dict.fromkeys(("do_resize", "do_rescale", "do_normalize"), True),
        "resample": 3,
        "rescale_factor": 1 / 255,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def num_parameters(model: nn.Module) -> int:
    """Count parameters."""
    return sum(p.numel() for p in model.parameters())


@dataclass(frozen=True)
class Probe:
    """How well a linear classifier reads a per-token label, beside what guessing would give."""

    accuracy: float
    foreground: float
    majority: float
    foreground_majority: float
    chance: float


def linear_probe(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], classes: int) -> Probe:
    """Fit a logistic regression on frozen features and measure it on others; class 0 is the background.

    Shapes: features [M, D], labels int64 [M], on both sides.
    """
    mean, std = train[0].mean(0), train[0].std(0) + 1e-6
    head = nn.Linear(train[0].shape[1], classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    features, optimizer = (
        (train[0] - mean) / std,
        torch.optim.LBFGS(head.parameters(), max_iter=60, history_size=10),
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(head(features), train[1]) + 1e-4 * head.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        right = head((test[0] - mean) / std).argmax(-1) == test[1]
    front = test[1] > 0
    return Probe(
        accuracy=right.float().mean().item(),
        foreground=right[front].float().mean().item(),
        majority=test[1].bincount().max().item() / len(test[1]),
        foreground_majority=test[1][front].bincount().max().item() / int(front.sum()),
        chance=1 / classes,
    )


def probe_patches(features_of: Callable[[Tensor], Tensor], scenes: int) -> dict[str, Any]:
    """Probe colour and shape in spatial features.

    Shapes: `features_of` maps images [B, 3, 32, 32] in [0, 1] to [B, 64, D].
    """
    batches = (make_batch(PROBE_SEED, 0, scenes), held_out(scenes))
    with torch.no_grad():
        train, test = (torch.cat([features_of(part) for part in batch.images.split(256)]) for batch in batches)
    result = {}
    for name, classes in (("colour", 9), ("shape", 7)):
        labels = [getattr(batch, f"{name}s").flatten() for batch in batches]
        probe = linear_probe((train.flatten(0, 1), labels[0]), (test.flatten(0, 1), labels[1]), classes)
        result[name] = vars(probe)
    return result
