"""Which images and captions a run trains on and is measured against."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, PositiveInt, model_validator

from prx.strict import PositiveFloat, Strict


class SourceConfig(Strict):
    """One of several training sets.

    Args:
        train: Folder of parquet files, or `embedded:NAME`.
        num_train: Rows of it to use; all unless told.
        weight: Its part of the samples, relative to the others'.
    """

    train: str
    num_train: PositiveInt | None = None
    weight: PositiveFloat = 1.0


class SubsetConfig(Strict):
    """Train on some rows only; either `share` or `rows`.

    Encodings are those of all rows. Of one seed, a smaller subset is part of a larger one.

    Args:
        share: Share of every training set.
        rows: Rows of the only training set.
        seed: Seed of the draw, apart from the run's.
    """

    share: Annotated[float, Field(gt=0, le=1)] | None = None
    rows: PositiveInt | None = None
    seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _one_size(self) -> SubsetConfig:
        if (self.share is None) == (self.rows is None):
            raise ValueError(f"must have either share or rows, got share {self.share} and rows {self.rows}")
        return self


class DataConfig(Strict):
    """Image-caption pairs in parquet; `embedded:NAME` generates the embedded world.

    Args:
        train: Folder of parquet files to train on, or `embedded:NAME`.
        reference: Folder of held-out ones that metrics compare with, and whose captions are the prompts.
        num_train: Rows to train on; all unless told.
        num_reference: Rows to compare with; all unless told.
        mixture: Several training sets at once, by names of yours, instead of `train`.
        subset: Train on some rows only.
        image_column: Column of the encoded images.
        image_size: Side in pixels that images are resized and cropped to.
        captions: Columns that a sample's caption is drawn from, each with its weight.
        prompt_column: Column of the reference that generated images are asked for.
        attributes_column: Column of what is to be seen, which `evaluation.reader` reads back (adherence).
    """

    train: str | None = "data/train"
    reference: str = "data/reference"
    num_train: PositiveInt | None = None
    num_reference: PositiveInt | None = None
    mixture: Annotated[dict[str, SourceConfig], Field(min_length=1)] | None = None
    subset: SubsetConfig | None = None
    image_column: str = "image"
    image_size: PositiveInt = 256
    captions: dict[str, PositiveFloat] = Field(default_factory=lambda: {"caption_long": 1.0}, min_length=1)
    prompt_column: str = "caption_long"
    attributes_column: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _mixture_replaces_default(cls, value: Any) -> Any:
        written = isinstance(value, Mapping) and value.get("mixture") is not None
        return {"train": None, **value} if written else value

    @model_validator(mode="after")
    def _one_origin(self) -> DataConfig:
        if (self.train is None) == (self.mixture is None):
            raise ValueError(f"must have either train or mixture (the other one null), got train {self.train!r}")
        if self.mixture and self.num_train:
            raise ValueError(f"num_train must be null with a mixture, whose sets count alone, got {self.num_train}")
        if self.mixture and self.subset and self.subset.rows:
            raise ValueError(f"subset must have a share, not rows, with a mixture, got rows {self.subset.rows}")
        return self

    @property
    def sources(self) -> dict[str, SourceConfig]:
        """Give the training sets by config path."""
        if self.mixture is None:
            return {"data.train": SourceConfig(train=str(self.train), num_train=self.num_train)}
        return {f"data.mixture.{name}.train": source for name, source in self.mixture.items()}
