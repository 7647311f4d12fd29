"""How many steps a sweep asked for, trained, took over and spared; counted from the trials' journals.

Every boundary's line says how many updates its trial had made by then, in all its lives. A segment that added
none was taken over: from an earlier sweep, or from another trial that shares it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sweeps.results import Journal, SweepFolder, SweepInfo, TrialState, read_journal, read_state

ENDED = ("pruned", "complete")
"""States of trials that train no more; a complete one may have had what it was trained for before its last step."""


@dataclass(frozen=True)
class Segment:
    """What lies between two boundaries of a trial. Units: steps; `trained` of `length` are its own work."""

    step: int
    length: int
    trained: int


@dataclass(frozen=True)
class Steps:
    """Counts of steps; `asked` is the sum of `trained`, `taken_over`, `spared` and `left`.

    Args:
        asked: What all trials are planned to train.
        trained: What this sweep trained of that, every step counted once.
        taken_over: What it found in the history, or another of its trials trained.
        spared: What early stopping left out.
        beside: Updates made beyond `trained`: of a segment in progress, or again after an interruption.
    """

    asked: int = 0
    trained: int = 0
    taken_over: int = 0
    spared: int = 0
    beside: int = 0

    @property
    def left(self) -> int:
        """What is neither trained nor ruled out."""
        return self.asked - self.trained - self.taken_over - self.spared

    def __add__(self, other: Steps) -> Steps:
        return Steps(
            self.asked + other.asked,
            self.trained + other.trained,
            self.taken_over + other.taken_over,
            self.spared + other.spared,
            self.beside + other.beside,
        )

    def __str__(self) -> str:
        words = [
            f"{self.asked:,} asked for",
            f"{self.trained:,} trained",
            f"{self.taken_over:,} replayed or shared",
            *([f"{self.spared:,} spared by early stopping"] if self.spared else []),
            f"{self.left:,} left",
        ]
        beside = f"; {self.beside:,} more in progress, or again after an interruption" if self.beside else ""
        return f"steps: {', '.join(words)}{beside}"


NO_STEPS = Steps()


def segments(journal: Journal) -> list[Segment]:
    """Say of every segment of a trial what it trained itself; a line without a count was trained."""
    found, before, made = [], 0, 0
    for step, entry in sorted(journal.boundaries.items()):
        count = int(entry.get("steps_trained", made + step - before))
        found.append(Segment(step, step - before, min(step - before, max(0, count - made))))
        before, made = step, max(made, count)
    return found


def count(journal: Journal, state: TrialState, steps: int) -> Steps:
    """Count the steps of one trial that is planned to train `steps`."""
    known = segments(journal)
    trained = sum(segment.trained for segment in known)
    taken_over = sum(segment.length for segment in known) - trained
    spared = steps - trained - taken_over if state.state in ENDED else 0
    return Steps(steps, trained, taken_over, spared, max(0, journal.steps_trained - trained))


def total(trials: Iterable[tuple[Journal, TrialState]], steps: int) -> Steps:
    """Count the steps of all trials."""
    return sum((count(journal, state, steps) for journal, state in trials), NO_STEPS)


def read_steps(folder: SweepFolder, info: SweepInfo) -> Steps:
    """Count the steps of a sweep from its folder, while it runs or after."""
    homes = (folder.trial(trial.trial_id) for trial in info.trials)
    return total(((read_journal(home), read_state(home)) for home in homes), info.steps)
