"""Plan, schedule, remember and report sweeps over training techniques; from Python: `from sweeps import Sweep`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sweeps.api import Results, Sweep, TrialResult

__all__ = ["Results", "Sweep", "TrialResult"]


def __getattr__(name: str) -> Any:
    """Import the Python interface on first use: the command line and the workers do not need all of it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sweeps import api

    return getattr(api, name)
