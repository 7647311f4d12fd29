"""Ray's token authentication: use the token that is there, or give our own instance a private one."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

MODE = "RAY_AUTH_MODE"
TOKEN = "RAY_AUTH_TOKEN"
TOKEN_PATH = "RAY_AUTH_TOKEN_PATH"
WHERE = f"{TOKEN}, a file named by {TOKEN_PATH}, or ~/.ray/auth_token"


@contextmanager
def found_token() -> Iterator[bool]:
    """Send the token that Ray can find, if there is one, and say whether there is.

    Ray by itself sends it only to a head that it found by itself, never to an address it was given. Whoever
    set the mode is obeyed.

    Raises: ValueError where the file that should hold the token is missing or empty.
    """
    found = _has_token()
    with environment({MODE: "token"} if found and MODE not in os.environ else {}):
        yield found


@contextmanager
def private_token() -> Iterator[None]:
    """Protect an instance of our own by a token, made up where none is there.

    Ray would write a new token to the home folder; two sweeps that start together would overwrite each
    other's, and the home folder may be read-only. Ours lives in the environment and ends with the instance.

    Raises: ValueError where the file that should hold the token is missing or empty.
    """
    values: dict[str, str] = {}
    if os.environ.get(MODE, "token").lower() == "token":
        values[MODE] = "token"
        if not _has_token():
            values[TOKEN] = secrets.token_hex(32)
    with environment(values):
        yield


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for a while, and put back what was there, Ray's own additions included."""
    kept = {name: os.environ.get(name) for name in {*values, MODE, TOKEN, TOKEN_PATH}}
    os.environ.update(values)
    _read_again()
    try:
        yield
    finally:
        for name, value in kept.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        _read_again()


def _has_token() -> bool:
    from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]

    path = os.environ.get(TOKEN_PATH)
    if not os.environ.get(TOKEN) and path and not _readable(Path(path)):
        raise ValueError(f"{TOKEN_PATH} must name a readable file that holds a token, got {path}")
    return bool(AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True))


def _readable(path: Path) -> bool:
    return path.is_file() and os.access(path, os.R_OK) and path.stat().st_size > 0


def _read_again() -> None:
    # Compiled: its stub lists neither name.
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    # Ray keeps both the mode and the token from the first look.
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
