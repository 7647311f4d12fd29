"""Draw what a clean-up would free, or has freed."""

from __future__ import annotations

from collections import defaultdict

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sweeps.gc import Finding, Item
from sweeps.live import bytes_text


def render_gc(found: Finding, *, deleted: bool) -> RenderableType:
    """Draw a table of what goes and why, and a line for all that stays."""
    lines = [Text(note, style="yellow") for note in found.notes]
    stays = sorted(found.kept.items())
    kept = [Text(f"kept: {number} ({bytes_text(size)}): {why}", style="dim") for why, (number, size) in stays]
    if not found.items:
        return Group(*lines, *kept, Text("nothing to free"))
    verb = "freed" if deleted else "would free"
    how = "" if deleted else "; nothing was deleted: --yes frees it"
    return Group(*lines, _table(found.items), *kept, Text(f"{verb} {bytes_text(found.freed)}{how}", style="bold"))


def _table(items: list[Item]) -> Table:
    groups: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for item in items:
        groups[item.what, item.where, item.why].append(item.size)
    table = Table(box=None, pad_edge=False)
    for name in ("what", "sweep", "why"):
        table.add_column(name)
    table.add_column("count", justify="right")
    table.add_column("size", justify="right")
    for (what, where, why), sizes in sorted(groups.items()):
        table.add_row(what, where or "-", why, str(len(sizes)), bytes_text(sum(sizes)))
    return table
