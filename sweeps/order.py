"""In which order trials are handed out, so that workers train instead of waiting for each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence


def in_order(paths: Mapping[str, Sequence[str]]) -> list[str]:
    """Sort trials: trunks before forks, and distinct trunks before anybody who would wait for one.

    Of trials that share a trunk, the one that shares most trains it: whoever parts early would leave the rest of
    it to another, which waits until then. The others follow as their forks are reached, those with the longest way
    of their own first. Trials that share nothing stay as planned.

    Args:
        paths: Trial -> the segments it has yet to train, in order, as planned.
    """
    wanted = Counter(key for keys in paths.values() for key in keys)
    shared = {trial: sum(wanted[key] > 1 for key in keys) for trial, keys in paths.items()}
    claimed: set[str] = set()
    waits: dict[str, int] = {}
    for trial in sorted(paths, key=lambda trial: -shared[trial]):
        keys = paths[trial]
        waits[trial] = next((ahead for ahead, key in enumerate(keys) if key not in claimed), len(keys))
        claimed.update(keys)
    return sorted(paths, key=lambda trial: waits[trial])
