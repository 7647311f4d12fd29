"""`prx-sweep schema`: print the reference, or write the committed files of a checkout again."""

from __future__ import annotations

import json
from pathlib import Path

from prx.errors import UserError
from prx.registry import choices
from sweeps.reference.meaning import Json
from sweeps.reference.page import page
from sweeps.reference.run import base_schema
from sweeps.reference.sweep import DRAFT, sweep_schema

FORMS = ("json", "md")
SUBJECTS = ("sweep", "run")
ROOT = Path(__file__).parents[2]
PAGE = "docs/yaml.md"


def text_of(form: str, of: str) -> str:
    """Write one of the references.

    Raises:
        UserError: There is no such format or subject.
    """
    for option, found, allowed in (("--format", form, FORMS), ("--of", of, SUBJECTS)):
        if found not in allowed:
            raise UserError(f"{option}: {choices(found, list(allowed))}")
    if form == "md":
        if of != "sweep":
            raise UserError(f"--of: must be sweep with --format md, whose page holds both; got {of!r}")
        return page()
    return _json(sweep_schema() if of == "sweep" else _run())


def _run() -> Json:
    return {"$schema": DRAFT, "title": "A run of prx, the base of a sweep", **base_schema()}


def _json(schema: Json) -> str:
    return json.dumps(schema, ensure_ascii=False, indent=1) + "\n"


def committed() -> dict[str, str]:
    """Give what the committed files have to hold, by their path in a checkout."""
    return {
        PAGE: text_of("md", "sweep"),
        "sweeps/sweep.schema.json": text_of("json", "sweep"),
        "sweeps/run.schema.json": text_of("json", "run"),
    }


def write(root: Path = ROOT) -> list[str]:
    """Write the committed files again; gives their paths.

    Raises:
        UserError: This is no checkout, so that there is no page to write.
    """
    if not (root / PAGE).parent.is_dir():
        raise UserError(f"--write: must run in a checkout, where {PAGE} is; {root} has no {Path(PAGE).parent}")
    files = committed()
    for path, text in files.items():
        (root / path).write_text(text, encoding="utf-8")
    return list(files)
