"""Is the process that claimed something still there? Answered for processes of this machine only."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil

START_TOLERANCE_S = 30.0
"""The system's clock may be set between two looks at one process; another of the same number starts later than that."""


@dataclass(frozen=True)
class Process:
    """A process. Units: `started` in seconds since 1970. `host` tells machines and containers apart."""

    host: str
    pid: int
    started: float


def this_process() -> Process:
    """Name this process."""
    return _named(os.getpid())


def gone(process: Process) -> bool:
    """Tell whether a process of this machine has ended; of another machine's this cannot be said."""
    if process.host != _host():
        return False
    try:
        found = psutil.Process(process.pid)
        ended: bool = found.status() == psutil.STATUS_ZOMBIE
        return ended or abs(found.create_time() - process.started) > START_TOLERANCE_S
    except psutil.NoSuchProcess:
        return True


@cache
def _named(pid: int) -> Process:
    return Process(_host(), pid, psutil.Process(pid).create_time())


@cache
def _host() -> str:
    """Name machine, start of the machine, and the space in which process numbers count: containers have their own."""
    parts = [socket.gethostname()]
    boot = Path("/proc/sys/kernel/random/boot_id")
    if boot.is_file():
        parts += [boot.read_text(encoding="ascii").strip(), os.readlink("/proc/self/ns/pid")]
    return "/".join(parts)
