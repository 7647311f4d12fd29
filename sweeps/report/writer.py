"""Writes the report again whenever a trial has ended, beside the run and never in its way."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

from sweeps.ledger import Event
from sweeps.report.page import write_report
from sweeps.results import FINISHED, SweepFolder

REST = 20.0
"""The writer rests so many times as long as the last page took: it uses a twentieth of a core at the most."""

LEAST_REST = 2.0


class ReportWriter(AbstractContextManager["ReportWriter"]):
    """A listener of the ledger, with a thread of its own; reads the sweep from the disk only.

    Events that come while it writes or rests make one page together. Leaving the context writes the last page. An
    error is logged each time and said once; it never reaches the run.
    """

    def __init__(
        self, folder: SweepFolder, say: Callable[[str], None], write: Callable[..., object] = write_report
    ) -> None:
        self.folder, self._say, self._write = folder, say, write
        self._wanted, self._over = threading.Event(), threading.Event()
        self._told = False
        self._thread = threading.Thread(target=self._work, name="report", daemon=True)

    def __enter__(self) -> ReportWriter:
        """Start the thread."""
        self._thread.start()
        return self

    def event(self, event: Event) -> None:
        """Ask for a page when a trial has ended; returns at once."""
        if event.kind in FINISHED:
            self._wanted.set()

    def __exit__(self, *_: object) -> None:
        """Wait for a page in progress, and write the last one."""
        self._over.set()
        self._wanted.set()
        self._thread.join()
        self._page(running=False)

    def _work(self) -> None:
        while not self._over.is_set():
            self._wanted.wait()
            if self._over.is_set():
                return
            self._wanted.clear()
            started = time.perf_counter()
            self._page(running=True)
            self._over.wait(max(LEAST_REST, REST * (time.perf_counter() - started)))

    def _page(self, running: bool) -> None:
        try:
            self._write(self.folder, running=running)
        except Exception as error:  # whatever is wrong with the page, the sweep's work goes on
            logging.getLogger(__name__).exception("the report could not be written")
            if not self._told:
                self._told = True
                self._say(f"the report could not be written ({type(error).__name__}: {error}); see the log")
