"""The stage tree: which stretches of training cells share, and what of each cell was trained here or taken over."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prx.config import RunConfig, parse_run_config
from prx.errors import ConfigError
from sweeps.results import read_journal
from sweeps.steps import Steps, read_steps, segments
from sweeps.tree import Branch, grow

if TYPE_CHECKING:
    from sweeps.report.gather import Material

MOST_CELLS = 200
MOST_BRANCHES = 60


@dataclass(frozen=True)
class Piece:
    """A segment of a cell's training in percent of its length, `own` percent of which this trial trained itself."""

    left: float
    width: float
    own: float


@dataclass(frozen=True)
class Row:
    """What became of a cell's first seed."""

    cell_id: str
    name: str
    state: str
    trained: int
    taken_over: int
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Trunk:
    """A stretch of training that cells have in common, or that parts from such a one."""

    depth: int
    start: int
    end: int
    name: str
    cells: int


@dataclass(frozen=True)
class Stages:
    """Steps of the whole sweep, cells as bars, shared stretches; how many of each did not fit."""

    steps: Steps
    rows: tuple[Row, ...]
    trunks: tuple[Trunk, ...]
    more_cells: int
    more_trunks: int


def stages(material: Material) -> Stages | None:
    """Lay out what was trained and what was taken over; None before anything was."""
    if not material.ranked:
        return None
    cells = {cell.name: cell.cell_id for cell in material.cells}
    names = [result.name for result in material.ranked]
    states = {result.name: result.state for result in material.ranked}
    rows = tuple(_row(material, cells[name], name, states[name]) for name in names[:MOST_CELLS])
    trunks = [trunk for root in grow(_runs(material)) if root.cells > 1 for trunk in _trunks(root, 0)]
    shown = tuple(trunks[:MOST_BRANCHES])
    total = read_steps(material.folder, material.info)
    return Stages(total, rows, shown, len(names) - len(rows), len(trunks) - len(shown))


def _runs(material: Material) -> Iterator[tuple[str, RunConfig]]:
    """Give the cells' configurations; what another version wrote may be none today, and shares nothing then."""
    for cell in material.cells[:MOST_CELLS]:
        config = material.config(cell.cell_id)
        if config is None:
            continue
        try:
            yield cell.name, parse_run_config(config)
        except ConfigError:
            continue


def _row(material: Material, cell_id: str, name: str, state: str) -> Row:
    total = material.info.steps
    found = segments(read_journal(material.folder.trial(material.first_trial(cell_id))))
    pieces = tuple(
        Piece(
            round(100 * (s.step - s.length) / total, 2), round(100 * s.length / total, 2),
            round(100 * s.trained / s.length, 1) if s.length else 0.0,
        )
        for s in found
    )  # fmt: skip
    trained = sum(segment.trained for segment in found)
    return Row(cell_id, name, state, trained, sum(segment.length for segment in found) - trained, pieces)


def _trunks(branch: Branch, depth: int) -> Iterator[Trunk]:
    yield Trunk(depth, branch.start, branch.end, branch.name, branch.cells)
    for child in sorted(branch.children, key=lambda child: child.start):
        yield from _trunks(child, depth + 1)
