"""What every section of a configuration is made of."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Probability = Annotated[float, Field(ge=0, le=1)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Strict(BaseModel):
    """A section that refuses unknown keys and quiet conversions."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True)
