"""Send a sweep to a cluster as a Ray job: measure the upload first, then submit and follow it."""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from cluster import authentication
from cluster.connect import ConnectError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

MEBIBYTE = 1024**2
# Ray's job server refuses a larger package, and says only "413".
UPLOAD_LIMIT = 100 * MEBIBYTE
NUM_LARGEST = 10
DEFAULT_SERVER = "http://127.0.0.1:8265"
ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
POLL_S = 1.0
_FAILURES = (OSError, RuntimeError)


@dataclass(frozen=True)
class UploadSize:
    """Say what `ray job submit --working-dir` sends of a folder.

    Units: bytes; the package is not compressed.
    """

    files: int
    total: int
    largest: tuple[tuple[str, int], ...]

    def __str__(self) -> str:
        return f"{self.files} files, {self.total / MEBIBYTE:.1f} MiB"


def preflight(folder: Path, limit: int = UPLOAD_LIMIT) -> UploadSize:
    """Measure the upload of a working directory, with `.gitignore` and `.rayignore` read as Ray reads them.

    Units: bytes.
    Raises: ValueError where the folder is missing, or its upload is larger than the job server takes.
    """
    if not folder.is_dir():
        raise ValueError(f"--working-dir must be an existing folder, got {folder}")
    sizes = _uploaded(folder.resolve())
    entries = Counter[str]()
    for path, size in sizes.items():
        entries["/".join(path.parts[:2])] += size
    found = UploadSize(len(sizes), sum(sizes.values()), tuple(entries.most_common(NUM_LARGEST)))
    if found.total > limit:
        listed = "\n".join(f"  {size / MEBIBYTE:8.1f} MiB  {path}" for path, size in found.largest)
        raise ValueError(
            f"--working-dir: the upload of {folder} must stay within {limit / MEBIBYTE:g} MiB, got {found}; "
            f"name in {folder / '.rayignore'} what the job does not need. The largest entries:\n{listed}"
        )
    return found


def _uploaded(folder: Path) -> dict[Path, int]:
    from ray._private.ray_constants import RAY_RUNTIME_ENV_IGNORE_GITIGNORE
    from ray._private.runtime_env.packaging import _dir_travel

    sizes: dict[Path, int] = {}

    def take(path: Path) -> None:
        if path.is_file():
            sizes[path.relative_to(folder)] = path.stat().st_size

    # The very walk that packs the upload: any rule of our own would drift from it.
    _dir_travel(
        folder,
        excludes=[],
        handler=take,
        include_gitignore=os.environ.get(RAY_RUNTIME_ENV_IGNORE_GITIGNORE, "0") != "1",
        logger=logging.getLogger(__name__),
    )
    return sizes


def submit(
    command: Sequence[str],
    *,
    address: str | None,
    working_dir: Path,
    write: Callable[[str], object],
    timeout_s: float = 20,
) -> int:
    """Run a command on a cluster as a Ray job, hand its output to `write`, and return its exit status.

    `address` is the URL of a job server; without it RAY_API_SERVER_ADDRESS, RAY_ADDRESS and this machine are
    looked at. An interrupt leaves the job running: it belongs to the cluster.

    Units: seconds, for the job server to answer.
    Raises: ValueError where the upload is too large; ConnectError where the job server cannot be used.
    """
    size = preflight(working_dir)
    server = job_server(address)
    with ExitStack() as stack:
        try:
            token = stack.enter_context(authentication.found_token())
            _reach(server, timeout_s)
            client, job = _send(command, server, working_dir)
        except _FAILURES as error:
            raise ConnectError(_refusal(server, error)) from error
        except _ray_error() as error:
            raise ConnectError(_refused_token(server, token)) from error
        write(f"{job} at {server}: uploaded {size}; stop it with `ray job stop {job}`\n")
        try:
            return asyncio.run(_follow(client, job, write))
        except _FAILURES as error:
            raise ConnectError(f"{server} was lost while {job} ran there: {error}") from error


def job_server(address: str | None) -> str:
    """Return the URL of the job server to use.

    Raises: ValueError for an address of another kind.
    """
    named = {"--address": address} | {name: os.environ.get(name) for name in ADDRESS_VARIABLES}
    source, found = next(((name, text) for name, text in named.items() if text), ("", DEFAULT_SERVER))
    parts = urlsplit(found)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{source} must be the URL of a job server such as {DEFAULT_SERVER}, got {found}")
    return found.rstrip("/")


def _reach(server: str, timeout_s: float) -> None:
    parts = urlsplit(server)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    # Ray's client has no timeout of its own.
    socket.create_connection((parts.hostname or "", port), timeout=timeout_s).close()


def _send(command: Sequence[str], server: str, working_dir: Path) -> tuple[JobSubmissionClient, str]:
    from ray.job_submission import JobSubmissionClient

    client = JobSubmissionClient(server)
    job = client.submit_job(entrypoint=shlex.join(command), runtime_env={"working_dir": str(working_dir)})
    return client, job


async def _follow(client: JobSubmissionClient, job: str, write: Callable[[str], object]) -> int:
    """Hand on what the job prints until it ends; return its exit status."""
    import aiohttp

    try:
        async for lines in client.tail_job_logs(job):
            write(lines)
    except (aiohttp.ClientError, RuntimeError) as error:
        write(f"\n{job}: its output stopped coming ({error}); `ray job logs {job}` has all of it\n")
    while not (info := client.get_job_info(job)).status.is_terminal():
        await asyncio.sleep(POLL_S)
    if info.status == "SUCCEEDED":
        return 0
    write(f"{job} {info.status.lower()}: {info.message}\n")
    return info.driver_exit_code or 1


def _ray_error() -> type[Exception]:
    from ray.exceptions import AuthenticationError

    return AuthenticationError


def _refused_token(server: str, token: bool) -> str:
    sent = "refuses the token that was sent" if token else "wants a token and none was found"
    return f"--address: the job server at {server} {sent}; it is looked for in {authentication.WHERE}"


def _refusal(server: str, error: Exception) -> str:
    return (
        f"--address: no job server to use at {server}: {' '.join(str(error).split())}; start one with "
        "`RAY_AUTH_MODE=token ray start --head`, or reach a remote one with `ray dashboard cluster/aws.yaml`"
    )
