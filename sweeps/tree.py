"""The stage tree of a plan: which trials train the same steps, and where they part. From configurations alone.

A branch is a stretch of training that some cells have in common, from the boundary where they part from the
others to the last one they reach. Trials of different seeds share nothing, so one tree stands for every seed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.text import Text

from prx.config import RunConfig
from sweeps.history.keys import Lineage

if TYPE_CHECKING:
    from sweeps.plan import Plan

LINES = 16


@dataclass
class Branch:
    """Steps `start` to `end` of some cells. `ending` are those that end here, `children` part from it."""

    start: int
    end: int
    ending: list[str] = field(default_factory=list)
    children: list[Branch] = field(default_factory=list)

    @property
    def cells(self) -> int:
        """Count the cells that train this branch, all or its beginning."""
        return len(self.ending) + sum(child.cells for child in self.children)

    @property
    def steps(self) -> int:
        """Count the steps of this branch and of all that part from it, each once."""
        return self.end - self.start + sum(child.steps for child in self.children)

    @property
    def name(self) -> str:
        """Name it by the first cell that ends here, or beyond."""
        return self.ending[0] if self.ending else self.children[0].name


@dataclass(frozen=True)
class StageTree:
    """All branches that start at step 0, and over how many seeds each is trained. Units: steps, of all seeds."""

    roots: Sequence[tuple[Branch, int]]
    asked: int

    @property
    def needed(self) -> int:
        """Count the steps to train when every shared one is trained once, and nobody is stopped early."""
        return sum(root.steps * seeds for root, seeds in self.roots)

    @property
    def saved(self) -> float:
        """Give the share of steps that need no training."""
        return 1 - self.needed / self.asked if self.asked else 0.0


def grow(runs: Iterable[tuple[str, RunConfig]]) -> list[Branch]:
    """Lay named runs of one seed into trees."""
    roots: list[Branch] = []
    known: dict[str, Branch] = {}
    for name, config in runs:
        siblings, tip = roots, None
        for start, end, stage in _stretches(config):
            branch = known.get(stage)
            if branch is None:
                branch = known[stage] = Branch(start, end)
                siblings.append(branch)
            branch.end = max(branch.end, end)
            siblings, tip = branch.children, branch
        if tip is not None:
            tip.ending.append(name)
    return roots


def _stretches(config: RunConfig) -> Iterator[tuple[int, int, str]]:
    """Give (start, end, name) of a run's stages, both at boundaries; a stage within one segment has none."""
    every, stages = config.evaluation.every, Lineage(config, None).stages
    ends = [start // every * every for start, _ in stages[1:]] + [config.steps]
    for (start, name), end in zip(stages, ends, strict=True):
        if end > (begin := start // every * every):
            yield begin, end, name


def stage_tree(plan: Plan) -> StageTree:
    """Give the stage tree of what a plan lists; equal cells under several seeds are laid out once."""
    by_seed: dict[int, list[str]] = defaultdict(list)
    for trial in plan.trials:
        by_seed[trial.seed].append(trial.cell.cell_id)
    seeds: dict[tuple[str, ...], int] = defaultdict(int)
    for cells in by_seed.values():
        seeds[tuple(cells)] += 1
    cell_of = {cell.cell_id: cell for cell in plan.cells}
    roots = [
        (root, number)
        for cells, number in seeds.items()
        for root in grow((cell_of[cell].name, cell_of[cell].config) for cell in cells)
    ]
    return StageTree(roots, sum(trial.config.steps for trial in plan.trials))


def render_tree(tree: StageTree, limit: int = LINES) -> Text | None:
    """Draw the trunks that cells share, in at most `limit` lines and one; None when nothing is shared."""
    if tree.needed == tree.asked:
        return None
    head = f"{tree.needed:,} of {tree.asked:,} steps need training (saves {tree.saved:.0%}): what is shared trains once"
    lines = [line for root, seeds in tree.roots if root.cells > 1 for line in _lines(root, 0, seeds)]
    text = Text(head)
    for depth, line in lines[:limit]:
        text.append("\n" + "  " * (depth + 1)).append(line, style="dim" if depth else "")
    if len(lines) > limit:
        text.append(f"\n  and {len(lines) - limit:,} more branches", style="dim")
    return text


def _lines(branch: Branch, depth: int, seeds: int) -> Iterator[tuple[int, str]]:
    shared = f", shared by {branch.cells:,} cells" if branch.cells > 1 else ""
    times = f", {seeds} seeds each" if depth == 0 and seeds > 1 else ""
    yield depth, f"{branch.start:,} → {branch.end:,}  {branch.name}{shared}{times}"
    for child in sorted(branch.children, key=lambda child: child.start):
        yield from _lines(child, depth + 1, seeds)
