"""What a history says of itself: its format, and the numerics whose states it holds.

HISTORY/history.json is written with the first entry. A folder without it is taken for a history only if it is
empty or holds nothing but what histories held before the marker existed; anything else is somebody's data.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from prx.errors import UserError

NUMERICS = 1
"""Raised whenever the same settings begin to give other weights; older entries are then left alone."""
FORMAT = 1
MARKER = "history.json"
UNMARKED = {"format": 1, "numerics": 1}
"""What a history without a marker is: those written before there was one."""
_OURS = re.compile(rf"[0-9a-f]{{2}}|leases|{re.escape(MARKER)}\..*")


def content() -> bytes:
    """Give the marker of this version."""
    return json.dumps({"format": FORMAT, "numerics": NUMERICS}).encode() + b"\n"


def check(where: str, marker: bytes | None, names: Sequence[str]) -> None:
    """Refuse a folder that is no history, or one of another version.

    Args:
        where: What to call it.
        marker: The content of its marker, if there is one.
        names: What lies in the folder.

    Raises:
        UserError: As it says.
    """
    found: object = UNMARKED
    if marker is not None:
        found = _parse(where, marker)
    elif foreign := sorted(name for name in names if not _OURS.fullmatch(name)):
        raise UserError(
            f"--history: {where} holds {', '.join(foreign[:3])} and no {MARKER}: it is no history of trained "
            "states; name an empty or new folder"
        )
    elif not names:
        return
    wanted = {"format": FORMAT, "numerics": NUMERICS}
    if found != wanted:
        raise UserError(
            f"--history: {where} was written with {_words(found)}, this version works with {_words(wanted)}; "
            "go on with the version that wrote it, or name another --history, where everything is trained anew"
        )


def _parse(where: str, marker: bytes) -> dict[str, int]:
    try:
        found = json.loads(marker)
        return {"format": int(found["format"]), "numerics": int(found["numerics"])}
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"--history: {where}/{MARKER} is damaged; it should be {content().decode().strip()} "
            "for a history of this version"
        ) from None


def _words(found: object) -> str:
    assert isinstance(found, dict)
    return f"numerics {found['numerics']} (format {found['format']})"
