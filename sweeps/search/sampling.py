"""Choose the points of a wave: a function of what is known, never of a clock or of who arrived first.

Every wave builds a fresh Optuna study in memory from the recorded points and their results, in their order, and
asks a sampler seeded by (seed of the search, study, wave) for a batch. So a run that was killed half-way through
asking, or between two waves, chooses the same points again, and the order in which the trials of a wave end
changes nothing. Ray's `OptunaSearch` asks for a point whenever a worker is free: which results it knows by then is
a matter of timing, its study cannot be asked again, and trials that were stopped early are told as complete. What
the batch costs is that a point does not know those beside it; a TPE counts them as bad, so that it spreads them.
"""

from __future__ import annotations

import hashlib
import logging
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from types import MappingProxyType
from typing import Any, Literal

import optuna
from optuna.samplers import BaseSampler, CmaEsSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from sweeps.cells import Cell
from sweeps.search.spec import SMALLEST_POPULATION, SearchSpec
from sweeps.search.studies import Infeasible, Params, Study

ATTEMPTS = 32
"""Proposals in a row that are nothing new, after which the sampler is not asked any more."""
FIXED = "fixed_params"
"""The attribute in which Optuna keeps what a point was told to be."""

Direction = Literal["minimize", "maximize"]
STATES = {
    "running": TrialState.RUNNING,
    "complete": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}


@dataclass(frozen=True)
class Result:
    """How a point did, its seeds averaged.

    `values` has one number for each objective; `curve` maps the steps that every seed reached to the only one.
    """

    state: Literal["running", "complete", "pruned", "failed"] = "running"
    values: tuple[float, ...] = ()
    curve: Mapping[int, float] = field(default_factory=dict)
    reason: str = ""


@dataclass(frozen=True)
class Proposal:
    """A point of a study. `attrs` is what the sampler wants to remember of it."""

    study: str
    cell_id: str
    params: Params
    attrs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Known:
    """What is known when a wave of one study is chosen: its proposals in their order, and results by cell."""

    proposals: Sequence[Proposal] = ()
    results: Mapping[str, Result] = field(default_factory=dict)


def frozen(
    study: Study, proposal: Proposal, result: Result, attrs: Mapping[str, Any] = MappingProxyType({})
) -> FrozenTrial:
    """Write a point the way Optuna keeps it, a pruned one with its last value; `attrs` are for people to read."""
    last = [result.curve[max(result.curve)]] if result.state == "pruned" and result.curve else None
    return create_trial(
        state=STATES[result.state],
        values=list(result.values) if result.state == "complete" else last,
        params=proposal.params,
        distributions=study.distributions(proposal.params),
        user_attrs=dict(attrs),
        system_attrs=dict(proposal.attrs),
        intermediate_values=dict(result.curve),
    )


def make_sampler(spec: SearchSpec, study: Study, wave: int) -> BaseSampler:
    """Make the sampler of one wave."""
    seed = wave_seed(spec.seed, study.name, wave)
    if spec.sampler in ("tpe", "multivariate_tpe"):
        # Groups are what lets a multivariate TPE keep parameters that only some points have.
        joint = spec.sampler == "multivariate_tpe"
        startup = spec.startup_size(study.num_params)
        return TPESampler(n_startup_trials=startup, multivariate=joint, group=joint, seed=seed)
    population = max(SMALLEST_POPULATION, spec.batch_size(study.num_params))
    if spec.sampler == "cma_es":
        return CmaEsSampler(seed=seed, popsize=population, warn_independent_sampling=False)
    if spec.sampler == "nsga2":
        return NSGAIISampler(seed=seed, population_size=population)
    return RandomSampler(seed=seed)


def wave_seed(seed: int, study: str, wave: int) -> int:
    """Seed one wave of one study."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{study}/{wave}".encode(), digest_size=4).digest())


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Optuna's notes on studies and experimental options out of the terminal."""
    log = logging.getLogger("optuna")
    level = log.level
    log.setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        try:
            yield
        finally:
            log.setLevel(level)


def propose(
    study: Study,
    spec: SearchSpec,
    directions: Sequence[Direction],
    known: Known,
    *,
    wave: int,
    wanted: int,
    first: Sequence[Params] = (),
) -> list[tuple[Proposal, Cell]]:
    """Choose up to `wanted` new points; fewer when the space holds no more, or the sampler finds none.

    All points to try first are among them, also where they are more. A proposal that was trained already stands in
    the list too: it is told its result and costs nothing.

    Args:
        directions: `minimize` or `maximize` for each objective.
        first: Points to try before the sampler chooses; what one leaves open, the sampler fills in.
    """
    with quiet():
        return _Wave(study, spec, directions, known, wave).choose(wanted, first)


class _Wave:
    """One study while the points of one wave are asked for."""

    def __init__(
        self, study: Study, spec: SearchSpec, directions: Sequence[Direction], known: Known, wave: int
    ) -> None:
        self._study, self._known = study, known
        sampler = make_sampler(spec, study, wave)
        self._inner = optuna.create_study(directions=directions, sampler=sampler)
        for proposal in known.proposals:
            self._inner.add_trial(frozen(study, proposal, known.results.get(proposal.cell_id, Result())))
        self._seen = {*known.results, *(proposal.cell_id for proposal in known.proposals)}
        self._found: list[tuple[Proposal, Cell]] = []
        self._order = random.Random(wave_seed(spec.seed, study.name, wave))

    def choose(self, wanted: int, first: Sequence[Params]) -> list[tuple[Proposal, Cell]]:
        for point in first:
            self._inner.enqueue_trial(point)
        new, missed, rest = 0, 0, None  # type: int, int, Iterator[Params] | None
        told = len(first)
        while new < wanted or told > 0:
            if missed == ATTEMPTS and told <= 0:
                rest = rest or self._unseen()
                unseen = list(islice(rest, 1))
                if not unseen:
                    break
                self._inner.enqueue_trial(unseen[0])
            told -= 1
            if self._ask():
                new, missed = new + 1, ATTEMPTS if rest else 0
            else:
                missed = min(missed + 1, ATTEMPTS)
        return self._found

    def _ask(self) -> bool:
        """Take a proposal; True where it is one more point to train."""
        asked = self._inner.ask()
        try:
            params = self._study.ask(asked)
            cell = self._study.cell(params)
        except Infeasible:
            self._inner.tell(asked, state=TrialState.FAIL)
            return False
        kept = self._inner.get_trials(deepcopy=False)[asked.number].system_attrs
        attrs = {key: value for key, value in kept.items() if key != FIXED}
        self._found.append((Proposal(self._study.name, cell.cell_id, params, attrs), cell))
        is_new = cell.cell_id not in self._seen
        self._seen.add(cell.cell_id)
        self._tell(asked, self._known.results.get(cell.cell_id, Result()))
        return is_new

    def _tell(self, asked: optuna.Trial, result: Result) -> None:
        if result.state != "running":
            values = list(result.values) if result.state == "complete" else None
            self._inner.tell(asked, values, STATES[result.state])

    def _unseen(self) -> Iterator[Params]:
        """List what a finite space still holds, in an order that favours nothing."""
        points = list(self._study.points())
        self._order.shuffle(points)
        for params in points:
            try:
                if self._study.cell(params).cell_id not in self._seen:
                    yield params
            except Infeasible:
                continue
