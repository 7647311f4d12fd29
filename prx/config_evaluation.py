"""How pictures are drawn, and against what a run is measured."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from prx.strict import Strict

Guidance = Literal["text", "routing", "path_drop"]
Weights = Literal["model", "ema"]
Scale = Annotated[float, Field(ge=0)]


class SamplingConfig(Strict):
    """How pictures are drawn; part of what a metric means.

    Args:
        num_steps: Steps of the sampler.
        guidance_scale: How far guidance moves away from the weak prediction; 1 is no guidance.
        guidance: The weak prediction: the null caption (`text`), the same caption through the router (`routing`),
            or the null caption without the routed blocks (`path_drop`).
        weights: The weights themselves, or their average.
    """

    num_steps: PositiveInt = 50
    guidance_scale: Scale = 3.5
    guidance: Guidance = "text"
    weights: Weights = "model"


class AlsoConfig(Strict):
    """Sampling settings under which a finished run is measured once more.

    Args:
        num_steps: As in `sampling` unless told.
        guidance_scale: As in `sampling` unless told.
        guidance: As in `sampling` unless told.
        weights: As in `sampling` unless told.
    """

    num_steps: PositiveInt | None = None
    guidance_scale: Scale | None = None
    guidance: Guidance | None = None
    weights: Weights | None = None

    @property
    def label(self) -> str:
        """Name the settings, as the columns of the results do: `guidance_scale=2,weights=ema`."""
        given = self.model_dump(exclude_none=True).items()
        return ",".join(f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}" for key, value in given)

    def applied(self, sampling: SamplingConfig) -> SamplingConfig:
        """Give the settings to draw with."""
        return sampling.model_copy(update=self.model_dump(exclude_none=True))


class EvaluationConfig(Strict):
    """When and against what a run is measured; extractors are local folders, hub ids or `embedded:ROLE`.

    Args:
        every: Steps between measurements.
        num_samples: Pictures that are drawn for one.
        batch_size: Pictures that are drawn at once.
        clip: Extractor behind CMMD and CLIP score; null leaves them out.
        dino: Extractor behind DINO-MMD, precision, recall, density and coverage; null leaves them out.
        inception: Extractor behind FID, or `torch-fidelity`, the network of published FID; null leaves it out.
        reader: Classifier that reads attributes back from pictures (adherence); null leaves it out.
        grid: Pictures of the sample grid that every measurement writes.
        also: Other sampling settings under which the finished run is measured, as columns `cmmd@guidance_scale=2`.
    """

    every: PositiveInt = 5_000
    num_samples: PositiveInt = 10_000
    batch_size: PositiveInt = 64
    clip: str | None = "openai/clip-vit-large-patch14-336"
    dino: str | None = "facebook/dinov2-with-registers-large"
    inception: str | None = None
    reader: str | None = None
    grid: PositiveInt = 16
    also: list[AlsoConfig] = Field(default_factory=list)
