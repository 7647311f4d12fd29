"""Join the Ray cluster that was named, or start one on this machine and stop it again."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from prx.errors import UserError
from sweeps.logs import ENVIRONMENT

ANSWER_SECONDS = 10.0
OBJECT_STORE_BYTES = 200 * 1024**2
"""Nothing large travels between trials: latents and references are files."""


@dataclass(frozen=True)
class Capacity:
    """What the cluster has for trials."""

    cpus: int
    gpus: int

    def concurrent(self, cpus: int, needs_gpu: bool) -> int:
        """Count the trials that fit at once."""
        return min(self.cpus // cpus, self.gpus) if needs_gpu else self.cpus // cpus


def own_cores() -> int:
    """Count the cores this process may use."""
    return len(os.sched_getaffinity(0))


def named(address: str | None) -> str | None:
    """Give the address that was asked for, by option or by environment."""
    return address or os.environ.get("RAY_ADDRESS") or None


@contextmanager
def cluster(address: str | None, cores: int) -> Iterator[Capacity]:
    """Connect, and leave again; an instance started here is stopped here, any other one goes on.

    Args:
        address: `host:port`, `ray://host:port` or `auto`; else what RAY_ADDRESS says; else start our own.
        cores: CPUs that an instance of our own offers.

    Raises:
        UserError: The address does not answer.
    """
    import ray

    address = named(address)
    joined = ray.is_initialized()
    if not joined:
        _init(address, cores)
    try:
        found = ray.cluster_resources()
        yield Capacity(int(found.get("CPU", 0)), int(found.get("GPU", 0)))
    finally:
        if not joined:
            ray.shutdown()


def _init(address: str | None, cores: int) -> None:
    import ray

    options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    if address is None or address == "local":
        options |= {"address": "local", "num_cpus": cores, "include_dashboard": False}
        options |= {"_node_ip_address": "127.0.0.1", "object_store_memory": OBJECT_STORE_BYTES}
    else:
        options |= {"address": address, "runtime_env": {"env_vars": ENVIRONMENT}}
    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        where = f"--address {address}" if address else "a Ray instance on this machine"
        raise UserError(f"{where}: cannot be used: {error}") from error


def check_answers(address: str | None) -> None:
    """Knock before Ray does: its own attempts go on for minutes.

    Raises:
        UserError: Nobody answers.
    """
    address = named(address)
    if address in (None, "local", "auto"):
        return
    host, _, port = str(address).removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"--address must be host:port, ray://host:port or auto, got {address!r}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"--address {address}: does not answer ({error}); is the Ray head running?"
        ) from error
