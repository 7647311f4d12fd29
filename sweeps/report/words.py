"""The question and the answer in sentences: what helped, what helped together, what it cost, how sure we are."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sweeps.analysis.effects import Effect
from sweeps.conclusion import conclusion
from sweeps.costs import money
from sweeps.leaderboard import UNEVEN, figure, uneven
from sweeps.live import seconds_text
from sweeps.other_settings import sentences
from sweeps.pareto import not_dominated, sentence
from sweeps.results import FINISHED

if TYPE_CHECKING:
    from sweeps.report.gather import Material

FEW = 6
"""Names in a sentence; more are counted."""

MOST_LEVELS = 12
"""Levels of all axes up to which the question names them."""


@dataclass(frozen=True)
class Answer:
    """A topic and what is to be said of it."""

    topic: str
    text: str


def with_error(value: float, error: float | None) -> str:
    """Write a figure to the decimals of its error, which gets two significant digits; three where there is none."""
    if error is None or math.isnan(error) or error <= 0:
        return figure(value, 3)
    decimals = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{decimals}f} ± {error:.{decimals}f}"


def signed(value: float, half: float = math.nan) -> str:
    """Write a difference with its sign, and what it may be off by."""
    return ("+" if value > 0 else "−" if value < 0 else "") + with_error(abs(value), half)


def half_width(low: float, high: float) -> float:
    """Give half an interval's width, NaN where there is none."""
    return (high - low) / 2


def question(material: Material) -> str:
    """Ask what the sweep asks."""
    info, axes = material.info, varied(material)
    lower = "lower" if info.mode == "min" else "raise"
    short = sum(map(len, axes.values())) <= MOST_LEVELS
    names = [f"{axis} ({', '.join(levels)})" if short else axis for axis, levels in axes.items()]
    together = ", alone and together" if len(axes) > 1 else ""
    what = f"levels of {_listed(names)}" if axes else "settings"
    return f"Which {what} {lower} {material.heading(info.metric)} after {info.steps} steps{together}?"


def varied(material: Material) -> dict[str, list[str]]:
    """List each axis' levels, the baseline's first, of axes with more than one."""
    cells = sorted(material.cells, key=lambda cell: not cell.is_baseline)
    axes = {axis: list(dict.fromkeys(cell.levels[axis] for cell in cells)) for axis in material.info.axes}
    return {axis: levels for axis, levels in axes.items() if len(levels) > 1}


def answers(material: Material) -> list[Answer]:
    """Say what may be concluded, and how surely."""
    found = [
        Answer("Best", _best(material)),
        Answer("Both goals", _goals(material)),
        Answer("Helped", _helped(material)),
        Answer("Together", _together(material)),
        Answer("Sampling", _sampling(material)),
        Answer("Price", _price(material)),
        Answer("Cost", " ".join(material.costs.sentences(material.running)) if material.ranked else ""),
        Answer("How sure", _sure(material)),
    ]
    return [answer for answer in found if answer.text]


def _best(material: Material) -> str:
    ended = all(state.state in FINISHED for state in material.states.values())
    return conclusion(material.verdict, material.heading(material.metric), material.info.steps, ended=ended)


def _goals(material: Material) -> str:
    info = material.info
    return sentence(not_dominated(material.frame, info), info) if len(info.objectives) == 2 else ""


def _helped(material: Material) -> str:
    sign, mains = material.observed.sign, material.effects.mains
    if not mains:
        return ""
    good = [effect for effect in mains if effect.found and sign * effect.estimate < 0]
    bad = [effect for effect in mains if effect.found and sign * effect.estimate > 0]
    unclear = [effect for effect in mains if not effect.found]
    parts = []
    if material.effects.noise.basis == "samples" and (good or bad):
        # A claim about the technique would need the noise of training, which one seed does not show.
        parts.append("In one training of each, beyond the samples' noise, though another seed may say otherwise:")
    parts.append(f"{_effects(good, sign)} helped." if good else "No level alone helped beyond the noise.")
    if bad:
        parts.append(f"{_effects(bad, sign)} hurt.")
    if unclear:
        parts.append(f"Not told apart from the baseline's level: {_few([effect.name for effect in unclear])}.")
    return " ".join(parts)


def _effects(effects: Sequence[Effect], sign: float) -> str:
    ordered = sorted(effects, key=lambda effect: sign * effect.estimate)
    return _few([f"{e.name} ({signed(e.estimate, half_width(e.low, e.high))})" for e in ordered])


def _together(material: Material) -> str:
    found, sign = material.effects, material.observed.sign
    if not found.interactions and not found.missing_interactions:
        return ""
    if not found.interactions:
        reasons = {lost.reason for lost in found.missing_interactions}
        why = next(iter(reasons)) if len(reasons) == 1 else "see below"
        return f"These cells cannot tell whether techniques add up: {why}."
    good = [effect for effect in found.interactions if effect.found and sign * effect.estimate < 0]
    bad = [effect for effect in found.interactions if effect.found and sign * effect.estimate > 0]
    if not good and not bad:
        count = len(found.interactions)
        none = f"None of {count} pairs is" if count > 1 else "The one pair that these cells tell of is not"
        return f"{none} told apart from the sum of its parts: as far as this sweep can see, gains add up."
    parts = [f"better than its parts promise: {_effects(good, sign)}"] if good else []
    parts += [f"worse than its parts promise: {_effects(bad, sign)}"] if bad else []
    return "; ".join(parts)[0].upper() + "; ".join(parts)[1:] + "."


def _sampling(material: Material) -> str:
    shown = next((one for one in material.other_settings if one.metric == material.metric), None)
    return " ".join(sentences(shown, material.heading(material.metric))) if shown else ""


def _price(material: Material) -> str:
    parts = []
    baseline = next((cell.cell_id for cell in material.cells if cell.is_baseline), None)
    faster = [
        t for t in material.speed
        if t.cell_id != baseline and t.num_reached == t.num_seeds and not t.at_most and t.speedup > 1
    ]  # fmt: skip
    if faster:
        top = max(faster, key=lambda one: one.speedup)
        interval = "" if math.isnan(top.low) else f" (95 %: {top.low:.2g} to {top.high:.2g})"
        own = seconds_text(top.hours * 3600)
        paid = f" ({money(top.hours, material.price)})" if material.price else ""
        parts.append(
            f"{top.name} is as good as the finished baseline after {own} of one device{paid}, "
            f"{top.speedup:.2g} times sooner than the baseline itself{interval}."
        )
    elif len(material.speed) > 1:
        parts.append("No cell is known to be as good as the finished baseline sooner than the baseline itself.")
    front = [point.name for point in material.points if point.on_front]
    if len(material.points) > 1:
        parts.append(f"Nothing is both better and cheaper than {_few(front)}.")
    return " ".join(parts)


def _sure(material: Material) -> str:
    seeds, noise = len(material.seeds), material.effects.noise
    parts = [f"{seeds} seeds of each cell were planned." if seeds > 1 else "One seed of each cell was planned."]
    if material.effects.mains:
        parts.append(f"{noise.words[0].upper()}{noise.words[1:]}.")
        parts.append("± is half a 95 % interval; a finding holds at 5 % for all of its kind together (Holm).")
    if uneven(material.ranked, material.info):
        parts.append(UNEVEN)
    early = [result.name for result in material.ranked if result.state == "pruned"]
    if early:
        who = "One cell was" if len(early) == 1 else f"{len(early)} cells were"
        parts.append(f"{who} stopped early: figures at fewer steps enter nothing here.")
    waiting = sum(material.counts[state] for state in ("pending", "running", "paused"))
    if waiting:
        parts.append(f"{waiting} of {len(material.states)} trials have not ended: all of this may change.")
    return " ".join(parts)


def _few(names: Iterable[str]) -> str:
    found = list(names)
    shown = found if len(found) <= FEW else [*found[: FEW - 1], f"{len(found) - FEW + 1} more"]
    return _listed(shown)


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]])) if names else ""


def counts(material: Material) -> Iterator[tuple[str, int]]:
    """Say how many trials stand where."""
    for state in ("complete", "running", "paused", "pending", "pruned", "failed"):
        if material.counts[state]:
            yield state, material.counts[state]
