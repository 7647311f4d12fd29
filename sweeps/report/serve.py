"""The report on this machine's loopback address, made anew when there are new results."""

from __future__ import annotations

import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prx.errors import UserError
from sweeps.report.gather import gather
from sweeps.report.page import render
from sweeps.results import SweepFolder
from sweeps.status import is_running

HOST = "127.0.0.1"


class ReportServer(ThreadingHTTPServer):
    """Serves one sweep's page at /, and at /version a word that changes with the results.

    Raises:
        UserError: The port is taken, or there is no such sweep.
    """

    daemon_threads = True

    def __init__(self, folder: SweepFolder, port: int) -> None:
        self.folder, self._page, self._made, self._lock = folder, b"", "", threading.Lock()
        self.page()
        try:
            super().__init__((HOST, port), Handler)
        except (OSError, OverflowError) as error:
            raise UserError(f"--port: {port} cannot be used ({error}); give another one, 0 takes any") from error

    @property
    def url(self) -> str:
        """The address to open."""
        return f"http://{HOST}:{self.server_address[1]}/"

    def version(self) -> str:
        """Name the state of the results."""
        changed = self.folder.results.stat().st_mtime_ns if self.folder.results.is_file() else 0
        return f"{changed}-{is_running(self.folder)}"

    def page(self) -> bytes:
        """Give the page; one at a time is made, and only when something has changed."""
        with self._lock:
            version = self.version()
            if version != self._made:
                self._page, self._made = render(gather(self.folder), live=version).encode(), version
            return self._page


class Handler(BaseHTTPRequestHandler):
    """Answers GET of the page and of its version; a foreign Host is refused, so that no other site can read it."""

    server: Any

    def do_GET(self) -> None:
        """Answer."""
        port = self.server.server_address[1]
        if self.headers.get("Host") not in {f"{HOST}:{port}", f"localhost:{port}"}:
            self.send_error(HTTPStatus.FORBIDDEN)
        elif self.path == "/":
            self._send(self.server.page(), "text/html; charset=utf-8")
        elif self.path == "/version":
            self._send(self.server.version().encode(), "text/plain; charset=utf-8")
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def _send(self, content: bytes, kind: str) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the terminal quiet."""
