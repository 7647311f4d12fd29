"""More seeds for the cells that matter: waves of one seed each, until the winner is told apart or seeds run out.

The rule, decided again after every seed: the leader by mean figure at full length, with the next best cells, up to
`add_to_top` in all, that it cannot be told from. Two cells are told apart when the difference of their figures,
paired by seed, is beyond its noise at 95 % (Student's t over the seeds, Holm's correction over the cells compared).
One seed says nothing of the noise of training, so nobody is told apart by it. The baseline gets every seed too:
differences to it are paired. Stopping as soon as a winner shows looks at the data several times, which makes a
false winner somewhat likelier than 5 %; a list of seeds does not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from sweeps.analysis.differences import Comparison
from sweeps.analysis.intervals import ALPHA, holm
from sweeps.analysis.observations import Observations, observe
from sweeps.cells import Cell, make_trial
from sweeps.results import SweepInfo
from sweeps.seeds import AdaptiveSeeds
from sweeps.waves import Outcomes, Wave

if TYPE_CHECKING:
    import pandas as pd

    from sweeps.ledger import Ledger


class SeedWaves:
    """Waves of one seed more, never stopped early.

    Args:
        cells: Gives every cell that was trained, the baseline first.
    """

    def __init__(self, seeds: AdaptiveSeeds, cells: Callable[[], Sequence[Cell]], ledger: Ledger) -> None:
        self._seeds, self._cells, self._ledger = seeds, cells, ledger
        self._count = seeds.start

    def next(self, outcomes: Outcomes) -> Wave | None:
        """Give the contenders and the baseline one more seed; None when that would tell nothing more."""
        import pandas as pd

        if self._count >= self._seeds.up_to:
            return None
        frame = pd.DataFrame(self._ledger.rows())
        chosen = contenders(frame, self._ledger.info, self._count, self._seeds.add_to_top)
        if not chosen:
            return None
        wave = [cell for cell in self._cells() if cell.is_baseline or cell.cell_id in chosen]
        seed, self._count = self._count, self._count + 1
        return Wave([make_trial(cell, seed) for cell in wave], judged=False)


def contenders(frame: pd.DataFrame, info: SweepInfo, seeds: int, most: int) -> list[str]:
    """List the cells, best first, that `seeds` seeds cannot tell apart; none when the leader stands alone.

    Only cells with a figure at full length for each of the seeds 0..`seeds` - 1 compete.
    """
    observed = _complete(frame, info, seeds)
    if len(observed.cells) < 2:
        return []
    means = [observed.sign * float(observed.value[observed.cell == i].mean()) for i in range(len(observed.cells))]
    order = [int(i) for i in np.argsort(means, kind="stable")]
    leader, others = order[0], order[1:most]
    if seeds > 1:
        others = [i for i, p in zip(others, _p_values(observed, leader, others), strict=True) if p >= ALPHA]
    return [observed.cells[i].cell_id for i in (leader, *others)] if others else []


def _complete(frame: pd.DataFrame, info: SweepInfo, seeds: int) -> Observations:
    """Take the cells that have every seed."""
    if len(frame):
        at = frame[(frame["step"] == info.steps) & (frame["seed"] < seeds)]
        counts = at.groupby("cell_id")["seed"].nunique()
        frame = at[at["cell_id"].isin(counts[counts == seeds].index)]
    return observe(frame, info, info.metric, info.mode)


def _p_values(observed: Observations, leader: int, others: Sequence[int]) -> list[float]:
    compared = Comparison(observed)
    found = [compared.difference(leader, other) for other in others]
    return [float(p) for p in holm(np.array([one.p if one else 1.0 for one in found]))] if found else []
