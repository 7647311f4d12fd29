"""Push the predicted velocity away from another sample's."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field
from torch import Tensor

from prx.config import TermConfig
from prx.errors import UserError
from prx.interfaces import LogUniform, LossTerm, PairContext, RunShape, StepView


class Contrastive(LossTerm):
    """Contrastive flow matching: minus the squared distance to the velocity of another sample.

    Added with weight λ this makes mean|v - u|² - λ mean|v - ũ|², with u the target velocity of the sample
    and ũ that of another one, its own image and noise. Its optimum is (E[u] - λ E[ũ]) / (1 - λ), longer
    than the velocity by 1 / (1 - λ): `correct_sampling` undoes that, as the paper does.
    Source: Stoica et al. 2025 (arXiv:2506.05350). Partners are drawn over the global batch, so that
    they do not depend on micro-batching; PRX rolls within the micro-batch. By default null captions are
    included and sampling is not corrected, as in PRX.
    """

    SOURCE = "Stoica et al. 2025, arXiv:2506.05350"
    SEARCH = {"weight": LogUniform(0.01, 0.15)}
    DRAWN = frozenset({"correct_sampling"})

    class Config(TermConfig):
        """Settings of the contrastive term.

        Without `contrast_unconditional` the term is divided by the share of captions kept on average, 1 - p:
        λ / (1 - p) acts on the others. The authors' code divides by the share of each micro-batch. For
        `correct_sampling` the λ of the last update counts, so that a term that fades or stops needs no
        correction afterwards.

        Args:
            weight: λ; 1 or more has no lower bound.
            negatives: The other sample is any, or one of another prompt: captions are compared as they belong to the
                images, dropped or not.
            contrast_unconditional: Whether samples with a dropped caption take part.
            correct_sampling: Whether pictures are drawn with (1 - λ) v - λ E[clean], which undoes the term's bias.
        """

        weight: Annotated[float, Field(gt=0, lt=1)] = 0.05
        negatives: Literal["any", "different_prompt"] = "any"
        contrast_unconditional: bool = True
        correct_sampling: bool = False

    def __init__(self, name: str, config: Config, shape: RunShape, teacher_width: int = 0) -> None:
        super().__init__(name, config, shape, teacher_width)
        self.kept = 1 - shape.caption_dropout

    @classmethod
    def problems(cls, config: Config, shape: RunShape) -> list[tuple[str, str]]:
        """Refuse a term without a lower bound, and a correction that would have to tell captions apart."""
        if config.contrast_unconditional:
            return []
        found = []
        if config.weight >= 1 - shape.caption_dropout:
            found.append(("weight", f"must be below the share of captions kept ({1 - shape.caption_dropout:g}) where "
                          f"contrast_unconditional is false, got {config.weight}"))  # fmt: skip
        if config.correct_sampling:
            found.append(("correct_sampling", "must be false where contrast_unconditional is false (predictions "
                          "without a caption would need no correction), got True"))  # fmt: skip
        return found

    def pair(self, context: PairContext, rng: np.random.Generator) -> np.ndarray | None:
        """Choose uniformly among the other samples, or those with another prompt: int64 [G].

        Raises:
            UserError: All prompts are equal, so that no sample has another prompt.
        """
        num = len(context.prompts)
        if self.config.negatives == "different_prompt":
            return self._different(context.prompts, rng)
        offset = rng.integers(1, num, size=num)
        return (np.arange(num) + offset) % num

    def _different(self, prompts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Sort by prompt, then step past the end of one's own group."""
        num = len(prompts)
        order = np.argsort(prompts, kind="stable")
        _, group, size = np.unique(prompts, return_inverse=True, return_counts=True)
        if len(size) == 1:
            raise UserError(f"losses.{self.name}.negatives: different_prompt needs two different captions in every "
                            f"batch, and all {num} of this one are equal; use any, or raise batch_size")  # fmt: skip
        offset = rng.integers(0, num - size[group])
        return order[(np.cumsum(size)[group] + offset) % num]

    def forward(self, view: StepView) -> Tensor:
        """Compute minus the mean squared distance to the partner's velocity."""
        error = (view.velocity - view.partners[self.name]).square()
        if self.config.contrast_unconditional:
            return -error.mean()
        assert view.unconditional is not None
        return -error[~view.unconditional].sum() / (error.numel() * self.kept)

    @property
    def corrects(self) -> bool:
        """Tell whether sampling is corrected."""
        return self.config.correct_sampling

    def correct(self, velocity: Tensor, mean_clean: Tensor, weight: float) -> Tensor:
        """Give (1 - λ) v + λ E[ũ], with E[ũ] = -E[clean], noise being zero on average.

        Exact for partners independent of the caption; clamped targets, under 1 % of them, are taken as whole.
        """
        return (1 - weight) * velocity - weight * mean_clean
