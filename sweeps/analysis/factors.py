"""The questions a design can answer, as contrasts of its cells.

Main effect of a level: cell with it minus cell without, all other axes equal, averaged over every combination of
the others that was trained both ways. Interaction of two levels: (both) - (one) - (other) + (neither), averaged
likewise: what the combination gives beyond the sum of its parts. Over a full grid these are the classical effects;
in an add-one-in design the one combination is the baseline; over a grid with holes, those combinations count that
are whole. Where nothing pairs up, as in a fraction, a regression answers (`sweeps.analysis.regression`) and names what
is aliased; where that cannot either, the reason is given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from sweeps.analysis.observations import CellKey, Floats, Observations
from sweeps.analysis.regression import Regression

Term = tuple[tuple[str, str], ...]
"""(axis, level) once for a main effect, twice for an interaction; each against the baseline's level."""


@dataclass(frozen=True)
class Question:
    """A term, and the weights of the cells that estimate it; None where they cannot, with the reason.

    `contexts` counts the combinations of the other axes it is averaged over, 0 where a regression answers, and
    `aliases` names the interactions that cannot be told apart from it.
    """

    term: Term
    weights: Floats | None
    contexts: int = 0
    aliases: tuple[str, ...] = ()
    reason: str = ""


def axis_levels(cells: Sequence[CellKey], baseline: Mapping[str, str]) -> dict[str, list[str]]:
    """List each axis' levels among the cells, the baseline's first; only axes that the cells vary."""
    found = {axis: list(dict.fromkeys([level, *(c.levels[axis] for c in cells)])) for axis, level in baseline.items()}
    return {axis: levels for axis, levels in found.items() if len(levels) > 1}


class Factors:
    """The contrasts of a set of cells."""

    def __init__(self, observed: Observations) -> None:
        self.cells, self.baseline = observed.cells, dict(observed.baseline)
        self.axes = axis_levels(self.cells, self.baseline)
        self._at = {self._key(cell.levels): i for i, cell in enumerate(self.cells)}
        self.regression = Regression(self.cells, self.axes)

    def mains(self) -> list[Question]:
        """Ask for every level's main effect."""
        return [self._main(axis, level) for axis, levels in self.axes.items() for level in levels[1:]]

    def interactions(self) -> list[Question]:
        """Ask for every pair of levels of different axes."""
        return [
            self._interaction(((one, a), (two, b)))
            for one, two in combinations(self.axes, 2)
            for a in self.axes[one][1:]
            for b in self.axes[two][1:]
        ]

    def _key(self, levels: Mapping[str, str]) -> tuple[str, ...]:
        return tuple(levels[axis] for axis in self.baseline)

    def _main(self, axis: str, level: str) -> Question:
        term: Term = ((axis, level),)
        matched = self._matched(term)
        if matched is not None:
            return Question(term, *matched)
        weights, aliased = self.regression.main(axis, level) if self.regression.tractable else (None, ())
        names = tuple(" × ".join(pair) for pair in aliased)
        return Question(term, weights, 0, names, "" if weights is not None else self._missing(term))

    def _interaction(self, term: Term) -> Question:
        matched = self._matched(term)
        if matched is not None:
            return Question(term, *matched)
        together = any(all(cell.levels[axis] == level for axis, level in term) for cell in self.cells)
        if not together:
            return Question(term, None, reason="no cell with both has reached full length")
        if not self.regression.tractable:
            return Question(term, None, reason=self._missing(term))
        (one, a), (two, b) = term
        weights = self.regression.interaction((one, two), (a, b))
        if weights is not None:
            return Question(term, weights)
        names = list(self.regression.aliases((one, two)))
        reason = f"aliased with {', '.join(names)}" if names else self._missing(term)
        return Question(term, None, aliases=tuple(names), reason=reason)

    def _matched(self, term: Term) -> tuple[Floats, int] | None:
        """Average over the contexts in which every corner of the term was trained."""
        weights, contexts = np.zeros(len(self.cells)), 0
        for cell in self.cells:
            if any(cell.levels[axis] != level for axis, level in term):
                continue
            corners = [self._corner(cell, term, kept) for kept in np.ndindex(*[2] * len(term))]
            if all(position is not None for _, position in corners):
                contexts += 1
                for sign, position in corners:
                    weights[position] += sign
        return (weights / contexts, contexts) if contexts else None

    def _corner(self, cell: CellKey, term: Term, kept: tuple[int, ...]) -> tuple[float, int | None]:
        """Find the cell that has only the kept levels of a term, and its sign."""
        replaced = {axis: self.baseline[axis] for (axis, _), keep in zip(term, kept, strict=True) if not keep}
        sign = (-1.0) ** (len(term) - sum(kept))
        return sign, self._at.get(self._key({**cell.levels, **replaced}))

    def _missing(self, term: Term) -> str:
        names = " with ".join(f"{axis} {level}" for axis, level in term)
        return f"the cells that would show what {names} adds have not reached full length or are not in the design"
