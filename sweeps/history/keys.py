"""Names of training states: equal keys hold equal weights, whoever trained them and for whatever sweep.

A key hashes the settings that acted on every step up to it, and nothing else: not the run's length where no
schedule mentions it, not a stop step that is not reached yet, not workers, ZeRO stage, micro-batch or device,
not how the run is measured. Runs that differ only in when a technique stops share every key before that.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from evaluation.inception import is_published
from prx import loaders, recipe, registry
from prx.config import NOT_IDENTITY, RunConfig, TermConfig
from prx.prepare import Caches
from sweeps.history.marker import NUMERICS

MEASURES = 2
"""Raised whenever the same pictures begin to give other figures, or more; known weights are then measured again."""

MEASURED_BY = ("evaluation", "sampling")
NETWORKS = ("clip", "dino", "inception", "reader")
"""Keys of `evaluation` that name networks."""
REFERENCE = ("reference", "num_reference", "prompt_column", "attributes_column")
"""Keys of `data` that decide what a run is compared with, not what it trains on."""
LOCATIONS = ("train", "num_train")
"""Keys of `data` that the fingerprints of the encodings stand for."""
NEVER = "never"


def digest(content: Any) -> str:
    """Hash plain data."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True, eq=False)
class Lineage:
    """The keys of one run, from its first step to its last.

    Args:
        config: The run.
        caches: Its encodings: their keys stand for data, encoders and preprocessing. Without them, paths do;
            nothing is opened then, but keys only compare runs of one plan, and measurements have none.
    """

    config: RunConfig
    caches: Caches | None

    @cached_property
    def stages(self) -> list[tuple[int, str]]:
        """List (first step, name) of the stretches on which nothing changes; equal names, equal all the way."""
        found, name = [], digest({"numerics": NUMERICS, "base": self._base})
        for start, acting in self._acts:
            if start < self.config.steps:
                name = digest([name, start, acting])
                found.append((start, name))
        return found

    def key(self, step: int) -> str:
        """Name the state after `step` updates."""
        acts = [(start, acting) for start, acting in self._acts if start < step]
        return digest({"numerics": NUMERICS, "base": self._base, "acts": acts, "step": step})

    @cached_property
    def _acts(self) -> list[tuple[int, dict[str, Any]]]:
        return [(start, self.effective(start)) for start in self.changes()]

    def measurement(self, step: int) -> str:
        """Name what is measured of the state after `step` updates."""
        assert self.caches is not None
        given = self.config.model_dump(mode="json")
        # Other sampling settings are measured at a run's end alone.
        left_out = {"every"} if step == self.config.steps and given["evaluation"]["also"] else {"every", "also"}
        evaluation = {k: v for k, v in given["evaluation"].items() if k not in left_out} | self._networks
        data = {k: v for k, v in given["data"].items() if k in ("image_size", "image_column", *REFERENCE)}
        asked = {"evaluation": evaluation, "sampling": given["sampling"], "data": data, "decoder": given["tokenizer"]}
        drawn = self._drawn(max(step - 1, 0))
        asked |= {"losses": drawn} if drawn else {}
        prompts = self.caches.prompts.key.digest
        return digest({"measures": MEASURES, "state": self.key(step), "prompts": prompts, **asked})

    @cached_property
    def _networks(self) -> dict[str, str]:
        """Name what measures by its weights: other ones under the same path give other figures."""
        given = {role: getattr(self.config.evaluation, role) for role in NETWORKS}
        # The network of published FID is refused unless its file is the published one, byte for byte.
        return {role: p if is_published(p) else loaders.identity(p) for role, p in given.items() if p}

    def changes(self) -> list[int]:
        """List the steps from which on other settings act, 0 first."""
        ends: list[Any] = [part.stop_step for part in self.config.losses.values() if isinstance(part, TermConfig)]
        ends.append(getattr(self.config.routing, "dense_from", NEVER))
        return sorted({0, *(end for end in ends if end != NEVER)})

    def effective(self, step: int) -> dict[str, Any]:
        """Give the scheduled settings that act on the update from `step` to `step` + 1."""
        losses = {}
        for name, part in self.config.losses.items():
            acting = self._term(part, step)
            if acting is not None:
                losses[name] = self._looking(name, acting)
        return {"losses": losses, "routing": self._routing(step)}

    def _looking(self, name: str, acting: dict[str, Any]) -> dict[str, Any]:
        """Name the networks that a term looks through: a teacher by its encodings where it has any, else by weights."""
        targets = self.caches.targets.get(name, []) if self.caches else []
        teacher = acting.pop("teacher", None)
        networks = {"network": acting["network"]} if "network" in acting else {}
        networks |= {} if targets else {"teacher": teacher}
        if self.caches is not None:
            networks = {role: path and loaders.identity(path) for role, path in networks.items()}
        return acting | networks | ({"targets": [job.key.digest for job in targets]} if targets else {})

    def _term(self, part: Any, step: int) -> dict[str, Any] | None:
        if part.stop_step != NEVER and step >= part.stop_step:
            return None
        given = part.model_dump(mode="json") | dict(_usual(part))
        stop = given.pop("stop_step")
        if part.schedule != "constant":  # the weight leans towards its end from the first step on
            given["until"] = self.config.steps if stop == NEVER else stop
        return dict(given)

    def _drawn(self, step: int) -> dict[str, Any]:
        """Give what acting terms change of how pictures are drawn, by term and setting."""
        acting = ((name, part) for name, part in self.config.losses.items() if self._term(part, step) is not None)
        drawn = {f"{name}.{key}": (getattr(part, key), usual) for name, part in acting for key, usual in _usual(part)}
        return {key: value for key, (value, usual) in drawn.items() if value != usual}

    def _routing(self, step: int) -> dict[str, Any] | None:
        part = self.config.routing
        if part is None:
            return None
        given = part.model_dump(mode="json")
        dense = given.pop("dense_from", NEVER)
        return {**given, "dense": dense != NEVER and step >= dense}

    @cached_property
    def _base(self) -> dict[str, Any]:
        """What acts on every step."""
        left_out = {*NOT_IDENTITY, *MEASURED_BY, "steps", "losses", "routing"}
        given: dict[str, Any] = self.config.model_dump(mode="json", exclude=left_out)
        if self.caches is None:
            return given
        given["data"] = _trained_on(given["data"])
        given["text"].pop("encoder")
        if "trained_tokenizer" not in registry.resolve("tokenizer", self.config.tokenizer.use).PROVIDES:
            given.pop("tokenizer")  # of a frozen one the latents say all
        else:
            given["tokenizer"] |= _trained_from(self.config.tokenizer)
        start = self.config.denoiser.init
        if start is not None:
            given["denoiser"]["init"] = loaders.identity(start.path, start.subfolder, start.revision)
        encodings = {"latents": self.caches.latents, "null": [self.caches.null]} | self.caches.texts
        given["encodings"] = {name: [job.key.digest for job in jobs] for name, jobs in encodings.items()}
        return given


def _usual(part: Any) -> list[tuple[str, Any]]:
    """List the settings of a term that only drawing pictures depends on, with their defaults."""
    fields = type(part).model_fields
    return [(key, fields[key].default) for key in sorted(registry.resolve("loss", part.use).DRAWN)]


def _trained_on(data: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what is only measured against, and where the data lie: their fingerprints are in the encodings."""
    found = {k: v for k, v in data.items() if k not in (*REFERENCE, *LOCATIONS)}
    if found.get("mixture"):
        found["mixture"] = {name: source["weight"] for name, source in found["mixture"].items()}
    return found


def _trained_from(tokenizer: Any) -> dict[str, Any]:
    """Name what a trained tokenizer starts from, and the network that judges its pictures, by their weights."""
    judge = getattr(tokenizer, "perceptual", None)
    named = {"path": recipe.tokenizer_identity(tokenizer), "subfolder": None, "revision": None}
    return named | ({"perceptual": loaders.identity(judge)} if judge else {})


def common_steps(first: Lineage, second: Lineage) -> int:
    """Count the steps that two runs share from the start: the length of their common trunk."""
    if first._base != second._base:
        return 0
    end = min(first.config.steps, second.config.steps)
    for step in sorted({*first.changes(), *second.changes()}):
        if step < end and first.effective(step) != second.effective(step):
            return step
    return end


def difference(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Name the top-level settings in which two bases differ, for messages."""
    return sorted(key for key in {*first, *second} if first.get(key) != second.get(key))
