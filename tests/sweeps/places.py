"""Where histories lie in tests: a folder, a file:// URI, a bucket of an S3 server on loopback."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyarrow import fs

from sweeps.history.store import HistoryStore

KEY_ID, SECRET, BUCKET = "somebody", "a/very secret+word", "histories"
KINDS = ("folder", "file uri", "s3")


@contextmanager
def s3_server() -> Iterator[str]:
    """Serve S3 on a free port of loopback from a thread; gives host:port. It has one bucket."""
    from moto.moto_server.threaded_moto_server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        made = fs.S3FileSystem(access_key="k", secret_key="s", scheme="http", region="us-east-1",
                               endpoint_override=f"{host}:{port}", allow_bucket_creation=True)  # fmt: skip
        made.create_dir(BUCKET)
        yield f"{host}:{port}"
    finally:
        server.stop()


def s3_uri(server: str, prefix: str, bucket: str = BUCKET, user: str = "somebody:a%2Fvery%20secret%2Bword@") -> str:
    """Write an address the way pyarrow and we read it."""
    return f"s3://{user}{bucket}/{prefix}?endpoint_override={server.replace(':', '%3A')}&scheme=http"


def address(kind: str, folder: Path, server: str) -> str:
    """Give an address that nobody used before."""
    if kind == "s3":
        return s3_uri(server, f"teams/{uuid.uuid4().hex}")
    return str(folder / "history") if kind == "folder" else f"file://{folder}/history"


def write(store: HistoryStore, path: str, content: bytes) -> None:
    """Put content somewhere in a store, past it."""
    if store.local:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).unlink(missing_ok=True)  # a checkpoint's other name must keep its content
    with store.files.open_output_stream(path) as handle:
        handle.write(content)


def paths(store: HistoryStore, below: str = "") -> list[str]:
    """List the files of a store, relative to its root."""
    found = store.listing(f"{store.root}/{below}".rstrip("/"), recursive=True)
    files = [info.path for info in found if info.type == fs.FileType.File and info.size]
    return sorted(path.removeprefix(f"{store.root}/") for path in files)
