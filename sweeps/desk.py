"""Where the actor of a trial and its workers meet: orders are laid down and answers picked up."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from prx.errors import NonFiniteError

IDLE = "idle"
PATIENCE = 30
"""How many times longer workers wait within a trial, whose actor may be slow to be heard; then they keep it and go."""


class WorkersLost(RuntimeError):
    """A worker's process died; the trial can go on from its last checkpoint with new ones."""


class WorkersIdle(RuntimeError):
    """There are no workers, or they went for want of orders: nothing was begun."""


class WorkerError(RuntimeError):
    """A worker raised an error; the text is its traceback."""


@dataclass
class Answers:
    """What the workers said to one order, by rank: a value, that numbers broke, or a traceback.

    `over` says why they went before all had answered, `failed` who of them had to.
    """

    values: dict[int, Any] = field(default_factory=dict)
    broken: dict[int, str] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)
    over: str | None = None
    failed: tuple[int, ...] = ()

    @property
    def count(self) -> int:
        """How many workers are through with the order, and sound."""
        return len(self.values.keys() | self.broken.keys())

    def problem(self) -> Exception | None:
        """Give what is to be raised: an error of the code only where no process died before it could tell."""
        if self.over == IDLE:
            return WorkersIdle()
        if self.over is not None:
            died = sorted(set(self.failed) - self.errors.keys())
            if self.failed and not died:
                return WorkerError(next(iter(self.errors.values())))
            whom = f"lost worker {', '.join(map(str, died))} of the trial" if died else self.over
            return WorkersLost(whom)
        return NonFiniteError(next(iter(self.broken.values()))) if self.broken else None


class Desk:
    """Where orders are laid down and answers picked up; an actor, one for each group of workers."""

    def __init__(self, workers: int, idle_s: float) -> None:
        self._workers, self._idle_s = workers, idle_s
        self._order: tuple[str, tuple[Any, ...]] | None = None
        self._number, self._answers = -1, Answers()
        self._over: tuple[str, tuple[int, ...]] | None = None
        self._changed = asyncio.Condition()

    async def order(self, name: str, *arguments: Any) -> Answers:
        """Lay an order down; gives the answers when all are there, or nobody is left to give them."""
        async with self._changed:
            if self._over is not None:  # nobody will begin
                return Answers(over=IDLE)
            self._number, self._order, self._answers = self._number + 1, (name, arguments), Answers()
            self._changed.notify_all()
            await self._changed.wait_for(lambda: self._over is not None or self._done())
            if not self._done() and self._over is not None:
                self._answers.over, self._answers.failed = self._over
            return self._answers

    async def next(self, number: int) -> tuple[str, tuple[Any, ...]] | None:
        """Pick up an order when it is there; None when it is time to go."""
        async with self._changed:
            while self._over is None and self._number < number:
                there = self._changed.wait_for(lambda: self._over is not None or self._number >= number)
                try:
                    await asyncio.wait_for(there, self._idle_s * (1 if self._free() else PATIENCE))
                except TimeoutError:
                    if self._number < 0 or self._done():
                        self._end(IDLE)
            return self._order if self._over is None else None

    async def answer(self, rank: int, kind: str, value: Any) -> None:
        """Answer the order at hand; `kind` is a field of `Answers`."""
        async with self._changed:
            getattr(self._answers, kind)[rank] = value
            self._changed.notify_all()

    async def end(self, why: str, failed: tuple[int, ...] = ()) -> None:
        """Let everybody go."""
        async with self._changed:
            self._end(why, failed)

    def _end(self, why: str, failed: tuple[int, ...] = ()) -> None:
        self._over = self._over or (why, failed)
        self._changed.notify_all()

    def _free(self) -> bool:
        """Say whether the workers are between two trials."""
        return self._order is not None and self._order[0] == "close"

    def _done(self) -> bool:
        return self._answers.count == self._workers
