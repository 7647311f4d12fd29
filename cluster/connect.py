"""Attach to a Ray cluster that somebody else runs, or to one of our own on this machine."""

from __future__ import annotations

import json
import logging
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from cluster import authentication, probe

LOOPBACK = "127.0.0.1"
# Unix socket paths end at 107 bytes and Ray adds up to 63 of its own below this folder.
LONGEST_FOLDER = 40


class ConnectError(ValueError):
    """The cluster that was asked for cannot be used; nothing was started."""


@dataclass
class Attached:
    """A connection of this process to a Ray cluster; `close` ends only what `attach` began."""

    address: str
    owned: bool
    logs: Path | None = None
    _leave: ExitStack = field(default_factory=ExitStack, repr=False)

    def resources(self) -> dict[str, float]:
        """Return what the whole cluster has now, used or not."""
        import ray

        return dict(ray.cluster_resources())

    def nodes(self) -> list[dict[str, float]]:
        """Return what each living machine has."""
        import ray

        return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]

    def ceiling(self) -> dict[str, float] | None:
        """Return what an autoscaling cluster may grow to, or nothing where it does not say."""
        from ray._private.state import state

        return state.get_max_resources_from_cluster_config()

    def close(self) -> None:
        """Disconnect; an instance of our own ends, its logs are kept. A second call does nothing."""
        self._leave.close()

    def __enter__(self) -> Attached:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def attach(
    address: str | None,
    *,
    num_cpus: int | None,
    log_dir: Path,
    timeout_s: float = 20,
    environment: Mapping[str, str] | None = None,
    object_store_bytes: int | None = None,
    dashboard: bool = False,
) -> Attached:
    """Connect to `address`, else to RAY_ADDRESS, else start an instance here that ends with `close`.

    Inside a Ray job RAY_ADDRESS comes from Ray. `auto` looks for a head on this machine, `local` insists on
    an instance of our own, to which `num_cpus`, `object_store_bytes` and `dashboard` belong; nothing in it
    listens beyond loopback. Trials of several workers need the dashboard: without it Ray never frees the
    workers of a stopped trial. `environment` reaches every worker; what the job itself sets comes first.

    Units: seconds.
    Raises: ConnectError.
    """
    import ray

    if ray.is_initialized():
        return Attached(ray.get_runtime_context().gcs_address, owned=False)
    source, named = _named(address)
    if named != "local":
        return _join(named, source, timeout_s, _left_by_job(environment or {}))
    options = {"num_cpus": num_cpus, "object_store_memory": object_store_bytes}
    return _start(log_dir, environment or {}, options | {"include_dashboard": dashboard})


def check(address: str | None, timeout_s: float = 20) -> None:
    """Refuse what `attach` would refuse, without connecting or starting anything.

    Units: seconds.
    Raises: ConnectError.
    """
    source, named = _named(address)
    if named != "local":
        with _reached(named, source, timeout_s):
            pass


def _named(address: str | None) -> tuple[str, str]:
    """Return where the address comes from, and the address."""
    source = "--address" if address else "RAY_ADDRESS"
    return source, address or os.environ.get("RAY_ADDRESS") or "local"


def _left_by_job(environment: Mapping[str, str]) -> dict[str, str]:
    """Leave out what the Ray job around us sets: Ray refuses to start where both name a variable."""
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    taken = (job.get("runtime_env") or {}).get("env_vars") or {}
    return {name: value for name, value in environment.items() if name not in taken}


def _join(address: str, source: str, timeout_s: float, environment: Mapping[str, str]) -> Attached:
    runtime = {"env_vars": dict(environment)} if environment else None
    with ExitStack() as stack:
        target, token = stack.enter_context(_reached(address, source, timeout_s))
        stack.callback(_shutdown)
        if why := _init(address=target, runtime_env=runtime):
            raise ConnectError(_refusal(source, address, why, token))
        return Attached(target, owned=False, _leave=stack.pop_all())


@contextmanager
def _reached(address: str, source: str, timeout_s: float) -> Iterator[tuple[str, bool]]:
    """Hold the token for a head that answers; give `HOST:PORT`, and whether there is a token."""
    with ExitStack() as stack:
        try:
            token = stack.enter_context(authentication.found_token())
            target = _target(address, source)
        except ValueError as error:
            raise ConnectError(str(error)) from error
        if why := probe.problem(target, timeout_s):
            raise ConnectError(_refusal(source, address, why, token))
        yield target, token


def _target(address: str, source: str) -> str:
    """Return `HOST:PORT` as `ray.init` will use it.

    Raises: ValueError for an address of another kind.
    """
    from ray._private import services

    if address == "auto":
        try:
            return services.canonicalize_bootstrap_address_or_die("auto")
        except ConnectionError as error:
            raise ValueError(f"{source} is auto: no Ray head on this machine; {_how_to_start()}") from error
    if address.startswith(("http://", "https://")):
        raise ValueError(
            f"{source} must be the HOST:PORT of a Ray head, got {address}, which is a job server: "
            f"use `python -m cluster submit FILE --address {address}`"
        )
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdigit():
        raise ValueError(f"{source} must be HOST:PORT of a Ray head, auto or local, got {address}")
    return services.canonicalize_bootstrap_address(address) or address


def _init(**options: object) -> str | None:
    """Call `ray.init` quietly; return why it failed, or nothing."""
    import ray

    # Whoever has arranged the log files of this process wants Ray's records in them too.
    arranged = bool(logging.getLogger().handlers)
    options |= {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": not arranged}
    try:
        ray.init(**options)
    except (RuntimeError, OSError, ValueError, ray.exceptions.RayError) as error:
        return " ".join(str(error).split()) or type(error).__name__
    return None


def _refusal(source: str, address: str, why: str, token: bool) -> str:
    sent = f"the token found in {authentication.WHERE} was sent" if token else "no token was found or sent"
    return (
        f"{source}: no Ray cluster to use at {address}: {why} ({sent}); {_how_to_start()}. "
        f"A cluster with token authentication wants its token in {authentication.WHERE}"
    )


def _how_to_start() -> str:
    return (
        "start one with `ray get-auth-token --generate` and `RAY_AUTH_MODE=token ray start --head`, "
        "or leave out --address and RAY_ADDRESS to run on this machine"
    )


def _start(log_dir: Path, environment: Mapping[str, str], options: Mapping[str, object]) -> Attached:
    import ray

    with ExitStack() as stack:
        folder = _short_folder()
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        stack.enter_context(authentication.environment(environment))
        try:
            stack.enter_context(authentication.private_token())
        except ValueError as error:
            raise ConnectError(str(error)) from error
        stack.enter_context(_only_loopback())
        stack.callback(_keep_logs, folder, log_dir)
        stack.callback(_shutdown)
        why = _init(
            address="local",
            dashboard_host=LOOPBACK,
            _node_ip_address=LOOPBACK,
            _temp_dir=str(folder),
            **options,
        )
        if why:
            raise ConnectError(f"Ray could not be started on this machine: {why}; its logs are in {log_dir}")
        session = Path(ray._private.worker.global_worker.node.get_session_dir_path())
        return Attached(
            ray.get_runtime_context().gcs_address, owned=True, logs=session / "logs", _leave=stack.pop_all()
        )


def _short_folder() -> Path:
    root = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix="prx-", dir=root if len(root) <= LONGEST_FOLDER - 13 else "/tmp"))


@contextmanager
def _only_loopback() -> Iterator[None]:
    """Keep Ray on 127.0.0.1: on Linux it would replace that by an address the network reaches."""
    from ray._private import ray_constants

    if platform.system() != "Linux":
        yield
        return
    before, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    with authentication.environment({ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0"}):
        try:
            yield
        finally:
            ray_constants.ENABLE_RAY_CLUSTER = before


def _keep_logs(folder: Path, log_dir: Path) -> None:
    """Copy the logs of an instance whose folder is about to be removed."""
    for logs in folder.glob("session_2*/logs"):
        kept = log_dir / logs.parent.name
        shutil.copytree(logs, kept, dirs_exist_ok=True, ignore_dangling_symlinks=True)


def _shutdown() -> None:
    import ray

    ray.shutdown()
