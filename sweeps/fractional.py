"""Two-level fractional factorial designs: generators of minimum aberration, resolution, aliases, what exclusions cost.

A word is a set of factors, written as the bits of an integer (bit i is factor i). In the coding where a factor's other
level is +1 and its baseline level -1, the words of the defining relation are even (+) or odd (-) by their length,
because the fraction is chosen so that it holds the baseline.
Source: Box & Hunter 1961 (resolution); Fries & Hunter 1980 (minimum aberration).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, reduce
from itertools import combinations
from math import comb
from operator import xor
from typing import Any

import numpy as np

SEARCHED = 500_000
"""Sets of generators that a search compares at the most: seconds, and some hundred MB."""


class TooLargeError(ValueError):
    """The exact search would take too long."""


CHUNK = 20_000


@dataclass(frozen=True)
class Fraction:
    """A 2^(k-p) design. `columns[i]` says which basic factors (bits) sum to factor i, modulo 2."""

    columns: tuple[int, ...]
    basic: int

    @property
    def runs(self) -> int:
        """The number of cells."""
        return 2**self.basic

    def rows(self) -> list[tuple[int, ...]]:
        """Give the level of every factor in every run, 0 (baseline) or 1; the first run is the baseline."""
        return [tuple((column & run).bit_count() % 2 for column in self.columns) for run in range(self.runs)]

    @property
    def generators(self) -> list[tuple[int, int]]:
        """Every added factor, and the word of basic factors whose product it is up to the sign."""
        return [(factor, column) for factor, column in enumerate(self.columns) if factor >= self.basic]

    @cached_property
    def words(self) -> tuple[int, ...]:
        """The defining relation without the identity, shortest words first."""
        found = [0]
        for factor, column in self.generators:
            found += [word ^ (1 << factor | column) for word in found]
        return tuple(sorted(found[1:], key=lambda word: (word.bit_count(), word)))

    @property
    def resolution(self) -> int | None:
        """The length of the shortest word; None for a full factorial, which confounds nothing."""
        return self.words[0].bit_count() if self.words else None

    def chain(self, word: int) -> int:
        """Name an effect's alias chain: effects of one chain have the same column, up to the sign."""
        return reduce(xor, (self.columns[factor] for factor in bits(word)), 0)

    def aliases(self, word: int, most: int = 2) -> list[tuple[int, int]]:
        """List the effects of at most `most` factors confounded with `word`: (sign, effect)."""
        found = [(sign(w), w ^ word) for w in self.words if (w ^ word).bit_count() <= most]
        return sorted(found, key=lambda item: (item[1].bit_count(), item[1]))


def sign(word: int) -> int:
    """Give the sign of a word of the defining relation."""
    return -1 if word.bit_count() % 2 else 1


def bits(word: int) -> list[int]:
    """List the factors of a word."""
    return [factor for factor in range(word.bit_length()) if word >> factor & 1]


def effects(factors: int) -> list[int]:
    """List main effects and two-factor interactions as words."""
    mains = [1 << factor for factor in range(factors)]
    return mains + [one | two for one, two in combinations(mains, 2)]


def smallest(factors: int, resolution: int) -> Fraction:
    """Find the design of the fewest runs with at least this resolution.

    Raises:
        TooLargeError: As `best`.
    """
    for basic in range(max(1, factors.bit_length()), factors):
        found = best(factors, 2**basic)
        if (found.resolution or factors) >= resolution:
            return found
    return best(factors, 2**factors)


@cache
def best(factors: int, runs: int) -> Fraction:
    """Find the design of minimum aberration: highest resolution, then fewest shortest words, and so on.

    Raises:
        ValueError: `runs` is no power of two between factors + 1 and 2^factors.
        TooLargeError: More than `SEARCHED` sets of generators would have to be compared.
    """
    basic = runs.bit_length() - 1
    if runs != 2**basic or not factors < runs <= 2**factors:
        raise ValueError(f"must be a power of two from {2 ** factors.bit_length()} to {2**factors}, got {runs}")
    base = tuple(1 << factor for factor in range(basic))
    added = factors - basic
    if not added:
        return Fraction(base, basic)
    number = _count(basic, added)
    if number > SEARCHED:
        raise TooLargeError(f"a search over {number:,} sets of generators would take too long (at most {SEARCHED:,})")
    chosen = _least([np.array(sets, dtype=np.int64) for sets in _candidates(basic, added)], basic, factors)
    return Fraction((*base, *(int(column) for column in chosen)), basic)


def _groups(basic: int) -> Iterator[tuple[int, list[int]]]:
    """Say what may go with a longest generator: by symmetry it is the product of the first basic factors."""
    for length in range(basic, 1, -1):
        first = 2**length - 1
        yield first, [w for w in range(1, 2**basic) if 1 < w.bit_count() <= length and w != first]


def _count(basic: int, added: int) -> int:
    return sum(comb(len(others), added - 1) for _, others in _groups(basic))


def _candidates(basic: int, added: int) -> Iterator[list[tuple[int, ...]]]:
    """Give sets of generators, the usual ones first: long words, of the first factors."""
    for first, others in _groups(basic):
        ordered = sorted(others, key=lambda word: (-word.bit_count(), word))
        found = [(first, *rest) for rest in combinations(ordered, added - 1)]
        if found:
            yield found


def _least(groups: Sequence[np.ndarray], basic: int, factors: int) -> np.ndarray:
    """Choose the candidates with the fewest words of length 3, of these the fewest of length 4, and so on.

    The number of words of each length follows from how many factors stand at their other level in each run
    (MacWilliams' identity), so that no word has to be written out.
    """
    sets = np.concatenate(groups)
    runs = np.arange(2**basic)
    parity = np.array([[(w & run).bit_count() % 2 for run in runs] for w in runs], dtype=np.int8)
    weights = parity[1 << np.arange(basic)].sum(axis=0, dtype=np.int8) + _summed(parity, sets)
    for length in range(3, factors + 1):
        krawtchouk = _krawtchouk(length, factors)
        parts = np.array_split(weights, len(weights) // CHUNK + 1)
        words = np.concatenate([krawtchouk[part].sum(axis=1) for part in parts])
        kept = words == words.min()
        sets, weights = sets[kept], weights[kept]
        if len(sets) == 1:
            break
    return sets[0]


def _summed(parity: np.ndarray, sets: np.ndarray) -> np.ndarray:
    total = np.zeros((len(sets), parity.shape[1]), dtype=np.int8)
    for column in sets.T:
        total += parity[column]
    return total


def _krawtchouk(length: int, factors: int) -> np.ndarray:
    """Give the Krawtchouk polynomial of a length at 0..factors."""
    return np.array(
        [
            sum((-1) ** j * comb(weight, j) * comb(factors - weight, length - j) for j in range(length + 1))
            for weight in range(factors + 1)
        ],
        dtype=np.int64,
    )


@dataclass(frozen=True)
class Loss:
    """What is lost when runs of a design are left out: effects (words) that the others cannot estimate.

    `alone` cannot be estimated even if factors do not interact; `free` are main effects that can then, but no longer
    free of two-factor interactions, of which the whole design kept them free.
    """

    missing: int
    alone: tuple[int, ...]
    free: tuple[int, ...]


def loss(fraction: Fraction, left: Sequence[tuple[int, ...]]) -> Loss:
    """Say what the cells that are left of a design no longer tell.

    Args:
        left: Level (0 or 1) of every factor in the cells that are trained.
    """
    mains = [1 << factor for factor in range(len(fraction.columns))]
    chains = _chains(fraction)
    alone = [main for main in mains if not _estimable(left, mains, main)]
    clear = [main for main in mains if main not in alone and _clear(fraction, main)]
    free = [main for main in clear if not _estimable(left, chains, main)]
    missing = sum(row not in set(left) for row in fraction.rows())
    return Loss(missing, tuple(alone), tuple(free))


def _clear(fraction: Fraction, main: int) -> bool:
    return all(effect.bit_count() > 2 for _, effect in fraction.aliases(main))


def _chains(fraction: Fraction) -> list[int]:
    """Give one effect of every alias chain of main effects and two-factor interactions."""
    seen: dict[int, int] = {}
    for effect in effects(len(fraction.columns)):
        seen.setdefault(fraction.chain(effect), effect)
    return [effect for chain, effect in seen.items() if chain]


def _estimable(rows: Sequence[Sequence[int]], model: Sequence[int], effect: int) -> bool:
    """Say whether a least-squares fit of the model determines the coefficient: a unit vector in the row space."""
    signs = 2 * np.asarray(rows, dtype=float).reshape(len(rows), -1) - 1
    columns: list[Any] = [np.ones(len(signs)), *(signs[:, bits(word)].prod(axis=1) for word in model)]
    matrix = np.stack(columns, axis=1)
    unit = np.eye(len(columns))[1 + list(model).index(effect)]
    return bool(np.linalg.matrix_rank(np.vstack([matrix, unit])) == np.linalg.matrix_rank(matrix))
