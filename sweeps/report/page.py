"""The records of a report through its templates: one page that loads nothing, whatever names it shows."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeps import measured_with
from sweeps.analysis.pareto import SECONDS_PER_HOUR
from sweeps.article import CAPTION, FIGURES, article_lines, article_title
from sweeps.costs import money
from sweeps.leaderboard import HEADINGS
from sweeps.live import seconds_text
from sweeps.report import charts, samples, stages, tables, words
from sweeps.report.gather import Material, gather
from sweeps.results import SweepFolder, write_atomic

if TYPE_CHECKING:
    from jinja2 import Environment

MOST_CROSSINGS, MOST_UNSURE = 6, 2
TEMPLATES = Path(__file__).with_name("templates")


@dataclass(frozen=True)
class Page:
    """Everything that the templates show; `live` as in `render`."""

    material: Material
    live: str = ""

    def context(self) -> dict[str, Any]:
        """Compute every section."""
        m = self.material
        script = (TEMPLATES / "script.js").read_text(encoding="utf-8")
        mains = m.effects.mains
        return {
            "m": m, "info": m.info, "live": self.live, "heading": m.heading(m.metric),
            "measured": measured_with.lines(m.info),
            "written": time.strftime("%Y-%m-%d %H:%M %Z"), "script": script, "policy": policy(script, bool(self.live)),
            "question": words.question(m), "answers": words.answers(m), "counts": list(words.counts(m)),
            "board": tables.board(m) if m.ranked else None,
            "forest": charts.forest(mains, m.observed.sign, _details(m), _texts(m)),
            "agreement": tables.agreement(m), "settings": tables.settings(m),
            "matrices": tables.matrices(m), "crossings": _crossings(m),
            "curves": charts.curves(m), "pareto": charts.pareto(m), "goals": charts.goals(m),
            "samples": samples.samples(m),
            "stages": stages.stages(m), "failures": tables.failures(m), "configs": tables.configs(m),
            "spent": m.costs.facts() if m.ranked else [], "money": partial(money, price=m.price),
            "article": article_lines(m.ranked, m.info), "article_title": article_title(m.info),
            "article_caption": CAPTION, "article_headings": [HEADINGS[name] for name in FIGURES],
            "signed": words.signed, "half": words.half_width, "duration": _duration,
        }  # fmt: skip


def _duration(hours: float) -> str:
    return seconds_text(hours * SECONDS_PER_HOUR)


def _details(material: Material) -> list[str]:
    """Say over what each main effect is averaged, and what cannot be told apart from it."""
    found = []
    for effect in material.effects.mains:
        axis, _ = effect.term[0]
        over = f"over {effect.contexts} combinations" if effect.contexts > 1 else "at the baseline's other levels"
        over = over if effect.contexts else "by regression over all cells"
        aliased = f"; aliased with {', '.join(effect.aliases)}" if effect.aliases else ""
        found.append(f"{axis}, {over}{aliased}")
    return found


def _texts(material: Material) -> list[str]:
    return [words.signed(e.estimate, words.half_width(e.low, e.high)) for e in material.effects.mains]


def _crossings(material: Material) -> list[charts.Crossing]:
    """Draw pairs of axes: at most six with an interaction beyond the noise, else the two with the largest."""
    ordered = sorted(material.effects.interactions, key=lambda e: -abs(e.estimate))
    found = [effect for effect in ordered if effect.found]
    shown, most = (found, MOST_CROSSINGS) if found else (ordered, MOST_UNSURE)
    pairs = list(dict.fromkeys((e.term[0][0], e.term[1][0]) for e in shown))[:most]
    made = [charts.crossing(material.observed, one, two, material.full_name) for one, two in pairs]
    return [chart for chart in made if chart is not None]


def policy(script: str, live: bool) -> str:
    """Write the page's content security policy: only its own script runs, and nothing is loaded from anywhere."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    own = " connect-src 'self';" if live else ""
    return (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}';{own} "
        "base-uri 'none'; form-action 'none'"
    )


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip


def render(material: Material, *, live: str = "") -> str:
    """Make the page. `live` names its version, and makes it ask the server it came from whether there is another."""
    context: Mapping[str, Any] = Page(material, live).context()
    return _environment().get_template("page.html.j2").render(context)


def default_path(folder: SweepFolder, form: str = "html") -> Path:
    """Say where a report goes unless told."""
    return folder.root / f"report.{form}"


def write_report(folder: SweepFolder, out: Path | None = None, running: bool | None = None) -> Path:
    """Write the page, replacing an older one at once; gives its path. `running` as in `gather`.

    Raises:
        UserError: There is no such sweep.
    """
    target = out or default_path(folder)
    write_atomic(target, render(gather(folder, running)))
    return target
