"""What a search has chosen, in the sweep's folder: written whole before anything of it trains, never changed after.

STORE/sweeps/NAME/search/search.json     what is searched: another search in the same folder is refused
STORE/sweeps/NAME/search/wave-0001.json  the proposals of a wave, in the order in which they were made

The Optuna study is a mirror of this and of the trials' journals.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from optuna.distributions import distribution_to_json

from prx.errors import ConfigError, Problem, UserError
from sweeps.cells import Plan
from sweeps.results import write_atomic
from sweeps.search.mirror import refuse_foreign
from sweeps.search.planning import SearchPlan
from sweeps.search.sampling import Proposal
from sweeps.search.studies import Study


class Records:
    """The search folder of one sweep."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "search"
        self.identity = self.folder / "search.json"

    def wave(self, number: int) -> list[Proposal] | None:
        """Read the proposals of a wave; None where it was not chosen yet.

        Raises:
            UserError: The file is damaged.
        """
        path = self._path(number)
        if not path.is_file():
            return None
        try:
            return [Proposal(**item) for item in json.loads(path.read_text(encoding="utf-8"))]
        except (ValueError, TypeError) as error:
            raise UserError(
                f"{path}: is not a wave of a search ({error}); restore it, or delete it and all later ones"
            ) from error

    def write(self, number: int, proposals: Iterable[Proposal]) -> None:
        """Record a wave."""
        content = json.dumps([asdict(proposal) for proposal in proposals], indent=1)
        write_atomic(self._path(number), content + "\n")

    def open(self, content: Mapping[str, Any]) -> str:
        """Record what is searched, once; gives the name that this run of the sweep has for ever."""
        known = self.read()
        name = known["id"] if known else uuid.uuid4().hex[:12]
        write_atomic(self.identity, json.dumps({"id": name, **content}, indent=1) + "\n")
        return name

    def read(self) -> dict[str, Any] | None:
        """Read what the folder's search is; raises as `wave`."""
        if not self.identity.is_file():
            return None
        try:
            found: dict[str, Any] = json.loads(self.identity.read_text(encoding="utf-8"))
            found["id"], found["studies"]
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{self.identity}: is damaged ({error}); restore it, or give the sweep another name"
            ) from error
        return found

    def _path(self, number: int) -> Path:
        return self.folder / f"wave-{number:04d}.json"


def content(plan: Plan, search: SearchPlan) -> dict[str, Any]:
    """Write out what decides which points are proposed, and what their results mean."""
    spec = search.spec
    return {
        "sampler": spec.sampler,
        "seed": spec.seed,
        "within": spec.within,
        "batch": spec.batch,
        "startup": spec.startup,
        "objectives": dict(plan.spec.objectives),
        "studies": {study.name: study_content(study) for study in search.studies},
    }


def study_content(study: Study) -> dict[str, Any]:
    """Write out the space of a study, cell by cell."""
    spaces = {
        cell.cell_id: {
            path: json.loads(distribution_to_json(found)) for path, found in study.spaces[cell.cell_id].items()
        }
        for cell in study.cells
    }
    return {"axes": {axis: list(levels) for axis, levels in study.axes.items()}, "spaces": spaces}


def preflight_search(plan: Plan, search: SearchPlan, root: Path) -> None:
    """Refuse to go on with a search or a study that is not this one; nothing is written.

    Raises:
        ConfigError: As it says.
    """
    records = Records(root)
    refuse_another(plan, search, records)
    known = records.read()
    refuse_foreign(search, plan.source, plan.spec.name, root, known["id"] if known else None)


def refuse_another(plan: Plan, search: SearchPlan, records: Records) -> None:
    """Refuse a folder whose points were chosen in another space; more trials and more cells are the same search.

    Where nothing was trained yet, as after a refusal of the data, another search may take the folder over.

    Raises:
        ConfigError: As it says.
    """
    known = records.read()
    if known is None or not any(records.folder.parent.glob("trials/*/journal.jsonl")):
        return
    wanted = content(plan, search)
    problems = []
    for key, value in wanted.items():
        if key != "studies" and known.get(key) != value:
            section = key if key == "objectives" else f"search.{key}"
            problems.append(_other(plan, section.split("."), known.get(key), value, records))
    for name, study in wanted["studies"].items():
        if name in known["studies"] and known["studies"][name] != json.loads(json.dumps(study)):
            problems.append(_other(plan, ["search", "space"], f"another space in {name!r}", "this one", records))
    if problems:
        raise ConfigError(problems)


def _other(plan: Plan, keys: Sequence[str], before: Any, now: Any, records: Records) -> Problem:
    message = (
        f"differs from the search that {records.folder} holds ({before} there, {now} here): its points would "
        "mean something else; give the sweep another name, what is trained already is not trained again"
    )
    return plan.source.problem(tuple(keys), message)
