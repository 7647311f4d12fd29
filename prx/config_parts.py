"""What the settings of techniques share, kind by kind."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from prx.strict import PositiveFloat, Probability, Strict


class PartConfig(Strict):
    """Settings of one technique.

    Args:
        use: Which technique; its name in the registry.
    """

    use: str


class ConflictStop(Strict):
    """End a term when its gradient fights the objective's: mean cosine of the two on one block.

    Source: HASTE, Wang et al. 2025 (arXiv:2505.16792).

    Args:
        below: The term ends once the cosine is below this.
        every: Steps between measurements.
        start: Step of the first one.
        block: Block whose gradients are compared, 0-based.
        times: Timesteps at which they are measured.
        num_samples: Images of a measurement, in whole batches; the run's first ones.
    """

    below: Annotated[float, Field(ge=-1, le=1)] = -0.05
    every: PositiveInt = 10_000
    start: Annotated[int, Field(ge=0)] = 50_000
    block: Annotated[int, Field(ge=0)] = 7
    times: Annotated[list[Probability], Field(min_length=1)] = [0.02, 0.1, 0.5, 0.8]
    num_samples: PositiveInt = 2_048

    def due_at(self, step: int) -> bool:
        """Tell whether to measure before the step that follows `step` updates."""
        return step >= self.start and (step - self.start) % self.every == 0


class TermConfig(PartConfig):
    """What every loss term has: a weight, and how it changes until the step where the term stops.

    Args:
        weight: What the term counts beside the objective's loss.
        schedule: How the weight falls to zero at `stop_step`, or at the run's end where it never stops.
        stop_step: Step from which the term is absent: no loss, no gradient, no teacher.
    """

    weight: PositiveFloat = 0.5
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    stop_step: PositiveInt | Literal["never"] = "never"

    def weight_at(self, step: int, steps: int) -> float:
        """Give the weight of the step that follows `step` updates, in a run of `steps`; 0 means absent."""
        end = steps if self.stop_step == "never" else self.stop_step
        if step >= end and self.stop_step != "never":
            return 0.0
        share = min(1.0, step / end)
        factor = {"constant": 1.0, "linear": 1 - share, "cosine": 0.5 * (1 + math.cos(math.pi * share))}
        return self.weight * factor[self.schedule]


class RouterConfig(PartConfig):
    """What every router has: the blocks it shortens, inclusive and 0-based, and how many tokens it drops.

    Args:
        start: First routed block; by the depth unless told.
        end: Last routed block; by the depth unless told.
        drop_rate: Share of tokens that skip the routed blocks in training.
        dense_from: Step from which every token runs, as in SPRINT's second stage (arXiv:2510.21986).
    """

    start: Annotated[int, Field(ge=0)] | None = None
    end: Annotated[int, Field(ge=0)] | None = None
    drop_rate: Annotated[float, Field(gt=0, lt=1)] = 0.5
    dense_from: PositiveInt | Literal["never"] = "never"

    def span(self, depth: int) -> tuple[int, int]:
        """Give the first and the last routed block; unless told, two blocks before and three after run dense.

        So do TREAD's and PRX's (2..8 of 12, 2..12 of 16); below depth 12 a quarter on each side.
        """
        start = min(2, max(1, depth // 4)) if self.start is None else self.start
        return start, depth - 1 - min(3, depth // 4) if self.end is None else self.end

    def num_kept(self, num_tokens: int) -> int:
        """Give K: all but the rounded share, at least one and at most all but one."""
        return min(max(1, num_tokens - round(self.drop_rate * num_tokens)), num_tokens - 1)

    def drops_at(self, step: int) -> bool:
        """Tell whether the step that follows `step` updates drops tokens."""
        return self.dense_from == "never" or step < self.dense_from

    def misfits(self, depth: int, num_tokens: int) -> list[tuple[str, str]]:
        """Find what does not fit a denoiser of `depth` blocks on `num_tokens` tokens: (key, message)."""
        (start, end), found = self.span(depth), []
        if end >= depth:
            found.append(("end", f"must be in 0..{depth - 1} (denoiser.depth is {depth}), got {end}"))
        if start > end:
            found.append(("start", f"must be at most end ({end}; denoiser.depth is {depth}), got {start}"))
        if num_tokens < 2:
            found.append(("drop_rate", f"needs at least 2 image tokens to drop one of, got {num_tokens}"))
        return found


class AlignmentConfig(TermConfig):
    """What comparing with a teacher adds to a term.

    Args:
        teacher: The frozen image encoder: a local folder, a hub id or `embedded:ROLE`.
        stop_when: End the term by itself when its gradient fights the objective's, if `stop_step` does not before.
    """

    teacher: str
    stop_when: ConflictStop | None = None

    def stop_problems(self, deepest: int, zero_stage: int) -> list[tuple[str, str]]:
        """Refuse a `stop_when` that could not measure; `deepest` is the last block with a gradient of the term."""
        found = []
        if self.stop_when is not None and zero_stage == 3:
            found.append(("stop_when", "must be null with infrastructure.zero_stage 3, which leaves no worker a "
                          "whole gradient; stages 0..2 do"))  # fmt: skip
        if self.stop_when is not None and self.stop_when.block > deepest:
            found.append(("stop_when.block", f"must be in 0..{deepest}, where the term has a gradient, got "
                          f"{self.stop_when.block}"))  # fmt: skip
        return found
