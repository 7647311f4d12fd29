"""Compare generated images with a reference set under one fixed specification.

Shape letters: N generated images, H W image grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from evaluation.adherence import AttributeReader, Attributes, adherence, load_reader
from evaluation.bootstrap import fid_draws, mmd_draws
from evaluation.captions import clip_score, embed_captions
from evaluation.features import BATCH_SIZE, Extractor, load_extractor
from evaluation.manifold import MANIFOLD_METRICS, manifold
from evaluation.manifold import MIN_SAMPLES as MIN_NEIGHBOURS
from evaluation.metrics import ESTIMATORS, checked_pair, cmmd_result, dino_mmd_result, fid, fid_se, normalise
from evaluation.preprocessing import checked_images
from evaluation.references import build_reference

MIN_SAMPLES = 4
"""Images without which no distance has a standard error."""
DISTANCES = {"cmmd": "clip", "dino_mmd": "dino", "fid": "inception"}
WITHOUT_FID = "leave fid out of the metrics or set allow_few"
METRIC_ROLES = DISTANCES | {"adherence": "reader", "clip_score": "clip"} | dict.fromkeys(MANIFOLD_METRICS, "dino")


@dataclass(frozen=True)
class EvaluationSpec:
    """Say which metrics to compute, with which weights, and how to find their standard errors.

    `resamples` is how many bootstrap draws stand behind a distance's standard error; with 0 it comes in closed form,
    which is faster and right where the bootstrap is too wide. `allow_few` lets FID go on with no more samples than
    features, where its covariance is singular.

    Raises: ValueError for an unknown metric, a metric without weights, a device that is not there, or a single
        resample.
    """

    clip: str | Path | None = None
    dino: str | Path | None = None
    inception: str | Path | None = None
    reader: str | Path | None = None
    metrics: Sequence[str] = (*DISTANCES, "adherence")
    resamples: int = 0
    seed: int = 0
    batch_size: int = BATCH_SIZE
    device: str = "cpu"
    allow_few: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "metrics", tuple(self.metrics))
        unknown = [name for name in self.metrics if name not in METRIC_ROLES]
        if unknown or not self.metrics:
            got = ", ".join(unknown) or "none"
            raise ValueError(f"evaluation.metrics must be among {', '.join(METRIC_ROLES)}, got {got}")
        for name in self.metrics:
            if getattr(self, METRIC_ROLES[name]) is None:
                raise ValueError(f"evaluation.{METRIC_ROLES[name]} must be set for metric {name}, got none")
        if self.resamples < 0 or self.resamples == 1:
            raise ValueError(f"evaluation.resamples must be 0 (closed form) or at least 2, got {self.resamples}")
        _check_device(self.device)

    def load_extractors(self) -> dict[str, Extractor]:
        """Load the embedding networks that the metrics need, by role."""
        roles = dict.fromkeys(METRIC_ROLES[name] for name in self.metrics if name != "adherence")
        return {role: load_extractor(role, getattr(self, role), device=self.device) for role in roles}

    def load_reader(self) -> AttributeReader | None:
        """Load the attribute reader if adherence is asked for."""
        if "adherence" not in self.metrics or self.reader is None:
            return None
        return load_reader(self.reader, device=self.device)


def _check_device(name: str) -> None:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    known = ["cpu", *(["cuda"] if count else []), *(f"cuda:{index}" for index in range(count))]
    if name not in known:
        raise ValueError(f"evaluation.device must be one of {', '.join(known)}, got {name!r}")


def compare(
    generated: Mapping[str, Tensor], real: Mapping[str, Tensor], spec: EvaluationSpec
) -> dict[str, float]:
    """Return every distance of the specification, and what nearest neighbours say, with its standard error.

    Shapes: each entry float32 [samples, width], by role.
    """
    found: dict[str, float] = {}
    for name in spec.metrics:
        if name in DISTANCES:
            role = DISTANCES[name]
            found |= _distance(name, generated[role], real[role], spec)
    return found | _neighbours(generated, real, spec)


def _neighbours(
    generated: Mapping[str, Tensor], real: Mapping[str, Tensor], spec: EvaluationSpec
) -> dict[str, float]:
    chosen = [name for name in MANIFOLD_METRICS if name in spec.metrics]
    if not chosen:
        return {}
    found = manifold(generated["dino"].to(spec.device), real["dino"].to(spec.device))
    return {key: found[key] for name in chosen for key in (name, f"{name}_se")}


def _distance(name: str, generated: Tensor, real: Tensor, spec: EvaluationSpec) -> dict[str, float]:
    x, y = checked_pair(name, generated.to(spec.device), real.to(spec.device))
    if name == "fid":
        se = fid_se(x, y) if not spec.resamples else _spread(fid_draws(x, y, resamples=spec.resamples, seed=spec.seed))
        return {"fid": fid(x, y), "fid_se": se}
    result = {"cmmd": cmmd_result, "dino_mmd": dino_mmd_result}[name](x, y)
    se = result.se if not spec.resamples else _spread(_unit_draws(name, x, y, spec))
    return {name: result.biased, f"{name}_se": se, f"{name}_unbiased": result.unbiased}


def _unit_draws(name: str, x: Tensor, y: Tensor, spec: EvaluationSpec) -> Tensor:
    unit_x, unit_y = normalise(x, f"{name}: generated"), normalise(y, f"{name}: real")
    return mmd_draws(unit_x, unit_y, resamples=spec.resamples, seed=spec.seed)


def _spread(draws: Tensor) -> float:
    return float(draws.std())


def check_count(
    count: int,
    spec: EvaluationSpec,
    extractors: Mapping[str, Extractor],
    path: str,
    remedy: str = WITHOUT_FID,
) -> None:
    """Refuse a number of images from which a metric of the specification cannot be computed.

    Raises: ValueError naming `path`, the rule, the count and, for FID, the `remedy`.
    """
    least = MIN_NEIGHBOURS if set(MANIFOLD_METRICS) & set(spec.metrics) else MIN_SAMPLES
    if count < least:
        raise ValueError(f"{path} must be at least {least} for {', '.join(spec.metrics)}, got {count}")
    if "fid" in spec.metrics and not spec.allow_few and count <= extractors["inception"].width:
        raise ValueError(
            f"{path} must be greater than {extractors['inception'].width} for fid (its number of features, "
            f"else the covariance is singular), got {count}; {remedy}"
        )


class Evaluator:
    """Measure generated images against one reference set.

    The reference is embedded once; every call compares against all of it, so figures of equal `num_samples`
    are comparable. Nothing here is random but the bootstrap, which is seeded.

    `path` and `remedy` say in messages what sets the number of images, and how to do with as few.

    Shapes: reference_images uint8 [count, 3, H, W]; wanted_attributes and captions have one entry per generated
        image.
    Raises: ValueError for too few reference images, adherence without wanted attributes, or clip_score without
        captions.
    """

    def __init__(
        self,
        spec: EvaluationSpec,
        reference_images: Tensor,
        wanted_attributes: Sequence[Attributes] | None,
        cache: Path | None,
        fingerprint: str,
        *,
        captions: Sequence[str] | None = None,
        reference_attributes: Sequence[Attributes] | None = None,
        path: str = "evaluation.num_samples",
        remedy: str = WITHOUT_FID,
    ) -> None:
        if "adherence" in spec.metrics and wanted_attributes is None:
            raise ValueError(
                "evaluation.metrics: adherence needs wanted attributes for every image, got none"
            )
        if "clip_score" in spec.metrics and captions is None:
            raise ValueError("evaluation.metrics: clip_score needs a caption for every image, got none")
        self.spec = spec
        self.path, self.remedy = path, remedy
        self._wanted = wanted_attributes
        checked_images(reference_images)
        # Ten thousand pictures take gigabytes, and are looked at again only for what can be read in them.
        self._attributed = None if reference_attributes is None else (reference_images, reference_attributes)
        self._extractors = spec.load_extractors()
        self._reader = spec.load_reader()
        self._captions = None
        if "clip_score" in spec.metrics and captions is not None and spec.clip is not None:
            self._captions = embed_captions(spec.clip, captions, device=spec.device)
        check_count(len(reference_images), spec, self._extractors, "number of reference images", remedy)
        self.reference = build_reference(
            reference_images,
            self._extractors,
            cache=cache,
            fingerprint=fingerprint,
            batch_size=spec.batch_size,
        )

    def evaluate(self, images: Tensor) -> dict[str, float]:
        """Return every metric, its standard error and the number of samples.

        Shapes: images uint8 [N, 3, H, W], in the order of the wanted attributes.
        Raises: ValueError naming the config path for too few images, or for a count that does not match the
            wanted attributes or captions.
        """
        check_count(len(checked_images(images)), self.spec, self._extractors, self.path, self.remedy)
        embeddings = {
            role: extractor.embed(images, batch_size=self.spec.batch_size)
            for role, extractor in self._extractors.items()
        }
        found = compare(embeddings, self.reference.embeddings, self.spec)
        found |= self._adherence(images, self._wanted) | self._clip_score(embeddings)
        return found | {"num_samples": float(len(images))}

    def reference_floor(self) -> dict[str, float]:
        """Return the metrics between two halves of the reference set: what a perfect model would show.

        Biased estimators fall with the number of samples, so this floor is that of `num_samples` here, half
        the reference. Adherence, if the reference has attributes, is that of the real images: the reader's
        own ceiling.

        Raises: ValueError if a half is too small for a metric.
        """
        half = self.reference.count // 2
        check_count(half, self.spec, self._extractors, "half the number of reference images", self.remedy)
        first, second = (
            {role: rows[start : 2 * half : 2] for role, rows in self.reference.embeddings.items()}
            for start in (0, 1)
        )
        found = compare(first, second, self.spec)
        if self._attributed is not None:
            found |= self._adherence(*self._attributed)
        return found | {"num_samples": float(half)}

    def provenance(self) -> dict[str, str]:
        """Name estimators, network versions and the reference set, for the report beside the figures."""
        named = {f"{name}_estimator": ESTIMATORS[name] for name in self.spec.metrics}
        named |= {f"{role}_version": extractor.version for role, extractor in self._extractors.items()}
        if self._reader is not None:
            named["reader_version"] = self._reader.version
        return named | {"reference_hash": self.reference.hash, "reference_count": str(self.reference.count)}

    def _clip_score(self, embeddings: Mapping[str, Tensor]) -> dict[str, float]:
        if self._captions is None:
            return {}
        mean, se = clip_score(embeddings["clip"], self._captions)
        return {"clip_score": mean, "clip_score_se": se}

    def _adherence(self, images: Tensor, wanted: Sequence[Attributes] | None) -> dict[str, float]:
        if self._reader is None or wanted is None:
            return {}
        mean, se = adherence(self._reader.read(images, batch_size=self.spec.batch_size), wanted)
        return {"adherence": mean, "adherence_se": se}
