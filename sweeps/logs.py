"""Keep the terminal for people: everything that libraries print goes to files."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # progress reports carry no metric
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # Tune's own state is not what a sweep resumes from
    "TUNE_RESULT_BUFFER_LENGTH": "1",
}


@contextmanager
def environment(**more: str) -> Iterator[None]:
    """Set what Ray reads from the environment, here and in the workers it starts, and take it back after."""
    wanted = {**{key: value for key, value in ENVIRONMENT.items() if key not in os.environ}, **more}
    before = {key: os.environ.get(key) for key in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Send Python's log records and warnings to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
    loggers = [logging.getLogger(), *(logging.getLogger(name) for name in ("ray", "ray.tune", "ray.train"))]
    before = [(logger, logger.handlers[:], logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers, logger.propagate = ([handler] if logger.name == "root" else []), True
    logging.captureWarnings(True)
    try:
        with warnings.catch_warnings():
            yield
    finally:
        logging.captureWarnings(False)
        for logger, handlers, propagate in before:
            logger.handlers, logger.propagate = handlers, propagate
        handler.close()


@contextmanager
def only_ours(path: Path) -> Iterator[Console]:
    """Send this process's standard output and error to a file; gives the console that still is the terminal.

    On the level of file descriptors, because compiled libraries and child processes print past Python.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    terminal = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="replace")
    for stream in (1, 2):
        os.dup2(target, stream)
    os.close(target)
    try:
        yield Console(file=terminal, highlight=False)
    finally:
        terminal.close()
        sys.stdout.flush()
        sys.stderr.flush()
        for stream, old in zip((1, 2), kept, strict=True):
            os.dup2(old, stream)
            os.close(old)


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Treat a polite kill (a preempted machine, a batch system) as Ctrl+C: save and end.

    To be entered after Ray started, because Ray sets a handler of its own that ends the process at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
