"""What a design can tell, for people: resolution, what is confounded with what, what left-out cells cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from sweeps.fractional import Fraction, bits, effects, loss, sign
from sweeps.plan import Plan

ROMAN = ("", "I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX", "X", "XI", "XII")
CROSS = " × "


def render_design(plan: Plan, limit: int) -> Iterator[RenderableType]:
    """Say what the design can tell; for those that confound nothing there is little to say."""
    spec = plan.spec
    if spec.design.use == "leave_one_out":
        full = spec.design.full_levels(spec.level_names())
        yield Text(f"everything on: {', '.join(f'{axis} {level}' for axis, level in full.items())}")
    fraction = spec.design.fraction(len(spec.axes))
    if fraction is not None:
        yield Text("\n".join(_summary(fraction, list(spec.axes))))
        yield from _aliases(fraction, list(spec.axes), limit)
        yield from _lost(plan, fraction)
    unused = _unused(plan)
    if unused:
        yield Text(f"in no cell of this design: {', '.join(unused)}", style="yellow")


def _summary(fraction: Fraction, axes: Sequence[str]) -> list[str]:
    factors, runs = len(axes), fraction.runs
    if fraction.resolution is None:
        return [f"2^{factors} full factorial, {runs} runs: nothing is confounded"]
    resolution = fraction.resolution
    size = f"2^({factors}-{factors - fraction.basic}) fraction, {runs} of {2**factors} runs"
    made = [f"{axes[i]} = {_signed(sign(word | 1 << i), word, axes)}" for i, word in fraction.generators]
    return [f"{size}, resolution {ROMAN[resolution]}: {_meaning(resolution)}", f"generators: {'; '.join(made)}"]


def _meaning(resolution: int) -> str:
    if resolution == 3:
        return "main effects are confounded with two-way interactions"
    if resolution == 4:
        return "main effects are clear of two-way interactions, which are confounded with each other"
    return "main effects and two-way interactions are clear of each other"


def _aliases(fraction: Fraction, axes: Sequence[str], limit: int) -> Iterator[Table]:
    """List every effect of one or two factors that is confounded with another, each chain once."""
    rows, seen = [], set()
    for effect in effects(len(axes)):
        found = fraction.aliases(effect)
        if found and fraction.chain(effect) not in seen:
            seen.add(fraction.chain(effect))
            rows.append((_named(effect, axes), ", ".join(_signed(sign, other, axes) for sign, other in found)))
    if not rows:
        return
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("effect")
    table.add_column("is confounded with", overflow="fold")
    for row in rows[:limit]:
        table.add_row(*row)
    if len(rows) > limit:
        table.add_row(Text(f"and {len(rows) - limit:,} more chains", style="dim"), "")
    yield table


def _lost(plan: Plan, fraction: Fraction) -> Iterator[Text]:
    baseline = plan.cells[0].levels
    left = [tuple(int(cell.levels[axis] != baseline[axis]) for axis in baseline) for cell in plan.cells]
    lost, axes = loss(fraction, left), list(baseline)
    if not lost.missing:
        return
    lines = [f"{lost.missing} of the {fraction.runs} runs are left out: the others are no longer orthogonal, so that "
             "effects are estimated together, with larger and correlated errors"]  # fmt: skip
    if lost.alone:
        lines.append(f"no longer estimable, even without interactions: {_listed(lost.alone, axes)}")
    if lost.free:
        lines.append(f"no longer estimable free of two-way interactions: {_listed(lost.free, axes)}")
    yield Text("\n".join(lines), style="yellow")


def _unused(plan: Plan) -> list[str]:
    laid_out = [cell.levels for cell in plan.cells] + [item.levels for item in plan.dropped]
    used = {(axis, level) for levels in laid_out for axis, level in levels.items()}
    names = plan.spec.level_names()
    return [f"{axis} {level}" for axis, levels in names.items() for level in levels if (axis, level) not in used]


def _listed(words: Sequence[int], axes: Sequence[str]) -> str:
    return ", ".join(_named(word, axes) for word in words)


def _named(word: int, axes: Sequence[str]) -> str:
    return CROSS.join(axes[factor] for factor in bits(word))


def _signed(sign: int, word: int, axes: Sequence[str]) -> str:
    return ("−" if sign < 0 else "") + _named(word, axes)
