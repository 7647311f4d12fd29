"""Align the denoiser's attention with a frozen image encoder's."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from prx import loaders
from prx.config import AlignmentConfig, PositiveFloat, PositiveInt
from prx.errors import UserError
from prx.interfaces import LogUniform, LossTerm, RunShape, StepView, TeacherSpec

Layers = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


class AttentionAlignment(LossTerm):
    """Cross-entropy from the teacher's attention among patches to the student's among image tokens.

    Mean over samples, heads, queries and pairs of blocks; no less than the teacher's entropy. Text keys are
    left out before the softmax. Shapes: logits [B, heads, N, N], target [B, pairs, heads, N, N].
    Source: Wang et al. 2025 (arXiv:2505.16792), the term L_A of HASTE. Blocks are paired as for its
    largest models; as many heads as both sides have are compared, where it names 12 of the student's 16.
    """

    SOURCE = "Wang et al. 2025, arXiv:2505.16792"
    SEARCH = {"weight": LogUniform(0.1, 2.0)}
    CONFLICTS = ("a routed student layer", "stop_when with ZeRO 3")

    class Config(AlignmentConfig):
        """Settings of one teacher: each student block follows the teacher's block at the same place of the list.

        Args:
            student_layers: Blocks of the denoiser whose attention follows, 0-based.
            teacher_layers: Blocks of the teacher that they follow, 0-based.
            heads: Heads that are compared; as many as both have unless told.
        """

        weight: PositiveFloat = 0.5
        student_layers: Layers = [4, 5, 6, 7]
        teacher_layers: Layers = [8, 9, 10, 11]
        heads: PositiveInt | None = None

    @property
    def attended(self) -> tuple[int, ...]:
        """Name the student's blocks."""
        return tuple(self.config.student_layers)

    @classmethod
    def problems(cls, config: Any, shape: RunShape) -> list[tuple[str, str]]:
        """Refuse blocks and heads that are not there, and student blocks that see no whole grid."""
        student, deepest = config.student_layers, max(config.student_layers)
        found = config.stop_problems(deepest, shape.zero_stage)
        if len(student) != len(config.teacher_layers):
            found.append(("teacher_layers", f"must be as many as student_layers ({len(student)}), got "
                          f"{len(config.teacher_layers)}"))  # fmt: skip
        if deepest >= shape.depth:
            rule = f"must be in 0..{shape.depth - 1} (denoiser.depth is {shape.depth}), got {deepest}"
            found.append(("student_layers", rule))
        routed = [layer for layer in student if shape.route and shape.route[0] <= layer <= shape.route[1]]
        if shape.route and routed:
            start, end = shape.route
            found.append(("student_layers", f"must be outside the routed blocks {start}..{end}, which see no whole "
                          f"grid, got {routed}"))  # fmt: skip
        return found + _teacher_problems(config, shape)

    @classmethod
    def teacher(cls, config: Any, shape: RunShape) -> TeacherSpec:
        """Ask for the attention of the teacher's blocks on the denoiser's grid."""
        return TeacherSpec(config.teacher, shape.grid, tuple(config.teacher_layers))

    def forward(self, view: StepView) -> Tensor:
        """Compute the cross-entropy, in nats."""
        target = view.attention[self.name]
        logits = (view.taps[layer].attention for layer in self.config.student_layers)
        return torch.stack([self._pair(rows, target[:, number]) for number, rows in enumerate(logits)]).mean()

    def _pair(self, logits: Tensor | None, target: Tensor) -> Tensor:
        """Compare one pair of blocks: logits and target [B, heads, N, N]."""
        assert logits is not None
        heads = self.config.heads or min(logits.shape[1], target.shape[1])
        wanted = target[:, :heads].float()
        wanted = wanted / wanted.sum(dim=-1, keepdim=True)  # kept in half precision, rows miss 1 a little
        return -(wanted * logits[:, :heads].float().log_softmax(dim=-1)).sum(dim=-1).mean()


def _teacher_problems(config: Any, shape: RunShape) -> list[tuple[str, str]]:
    try:
        teacher = loaders.read_config(config.teacher)
    except UserError:  # reported by the recipe, for every term with a teacher
        return []
    layers, heads = int(teacher.get("num_hidden_layers", 0)), int(teacher.get("num_attention_heads", 0))
    found = []
    if max(config.teacher_layers) >= layers:
        found.append(("teacher_layers", f"must be in 0..{layers - 1} (the teacher has {layers} blocks), got "
                      f"{max(config.teacher_layers)}"))  # fmt: skip
    if config.heads is not None and config.heads > min(heads, shape.heads):
        found.append(("heads", f"must be in 1..{min(heads, shape.heads)} (the student has {shape.heads}, the teacher "
                      f"{heads}), got {config.heads}"))  # fmt: skip
    return found
