"""Where a history lies: a folder, or a URI that `pyarrow.fs` understands; opened without keeping a secret.

Credentials of object stores come from the environment, or from the URI itself (s3://KEY:SECRET@bucket/...). They
are taken off a URI before it is written, printed or handed on, and reach worker processes by the environment.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit, urlunsplit

import pyarrow as pa
from pyarrow import fs

from prx.errors import UserError

_USERINFO = re.compile(r"(?<=://).*@")
_S3_OPTIONS = {"endpoint_override": "endpoint_override", "scheme": "scheme", "region": "region"}
_METADATA = "AWS_EC2_METADATA_DISABLED"
_GIVEN_BY = (
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)
CONNECT_S, REQUEST_S, ATTEMPTS = 5.0, 60.0, 3
"""An address that does not answer is told in seconds, where the SDK's own patience is minutes."""


def public(text: str) -> str:
    """Take out of a message whatever may be the credentials of a URI, escaped or not."""
    return _USERINFO.sub("", text)


def without_credentials(uri: str | Path) -> str:
    """Give the address that may be written down and handed on; it opens where `credentials` are in the environment.

    Raises:
        UserError: The URI is none.
    """
    if "://" not in str(uri):
        return str(Path(uri).absolute())  # workers may stand elsewhere
    parts = _split(str(uri))
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def credentials(uri: str | Path) -> dict[str, str]:
    """Give a URI's credentials as the environment variables that name them; without any, nothing.

    Raises:
        UserError: The URI is none, or carries credentials of another kind of store than S3.
    """
    if "://" not in str(uri):
        return {}
    parts = _split(str(uri))
    if "@" not in parts.netloc:
        return {}
    if parts.scheme != "s3" or not parts.username or not parts.password:
        raise UserError(
            f"--history: {public(str(uri))} must carry no credentials but s3://KEY:SECRET@...; "
            "give them as that store's client expects them in the environment"
        )
    return {
        "AWS_ACCESS_KEY_ID": unquote(parts.username),
        "AWS_SECRET_ACCESS_KEY": unquote(parts.password),
        "AWS_SESSION_TOKEN": "",
    }


def open_address(uri: str | Path) -> tuple[fs.FileSystem, str]:
    """Open a folder or URI; gives the file system and the path in it. Nothing is written.

    Raises:
        UserError: It cannot be opened; credentials are never part of the message.
    """
    if "://" not in str(uri):
        return fs.LocalFileSystem(), str(Path(uri).absolute())
    given = credentials(uri)
    try:
        if _split(str(uri)).scheme == "s3":
            return _open_s3(str(uri), given)
        files, root = fs.FileSystem.from_uri(str(uri))
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"--history: {public(str(uri))!r} cannot be opened ({reason(error)})") from None
    return files, root.rstrip("/")


def reason(error: BaseException) -> str:
    """Say in one line what a store answered, without a secret."""
    return public(str(error)).partition("\n")[0].partition(" (Request ID")[0]


def _split(uri: str) -> SplitResult:
    try:
        parts = urlsplit(uri)
        if parts.scheme == "s3" and parts.port is not None:
            raise ValueError("a bucket has no port")  # the secret has a slash, and was cut there
        return parts
    except ValueError:
        raise UserError(
            f"--history: {public(uri)} is no URI; special characters of a key or secret are written as %2F and so on"
        ) from None


def _open_s3(uri: str, given: Mapping[str, str]) -> tuple[fs.FileSystem, str]:
    parts = _split(uri)
    bucket, path = parts.hostname or "", parts.path.strip("/")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    unknown = sorted(options.keys() - _S3_OPTIONS.keys())
    if not bucket or unknown:
        what = f"has unknown options {unknown}" if unknown else "names no bucket"
        form = f"it is s3://BUCKET/PREFIX?OPTION=..., options {sorted(_S3_OPTIONS)}"
        raise UserError(f"--history: {public(uri)} {what}; {form}")
    os.environ.setdefault(_METADATA, "true")  # else the SDK asks for minutes where there is no such service
    if not given and not _has_credentials():
        raise UserError(
            f"--history: {public(uri)}: no credentials for S3: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
            f"AWS_PROFILE, or {_METADATA}=false on a machine whose role may use the bucket"
        )
    secrets = {
        "access_key": given.get("AWS_ACCESS_KEY_ID"),
        "secret_key": given.get("AWS_SECRET_ACCESS_KEY"),
    }
    files = fs.S3FileSystem(
        **secrets,
        **{_S3_OPTIONS[name]: value for name, value in options.items()} | {"region": _region(bucket, options)},
        connect_timeout=CONNECT_S,
        request_timeout=REQUEST_S,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
        allow_delayed_open=True,  # a small object is one request, not three
    )
    return files, f"{bucket}/{path}".rstrip("/")


def _region(bucket: str, options: Mapping[str, str]) -> str:
    named = options.get("region") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if named:
        return named
    elsewhere = "endpoint_override" in options or os.environ.get("AWS_ENDPOINT_URL")
    return "us-east-1" if elsewhere else str(fs.resolve_s3_region(bucket))


def _has_credentials() -> bool:
    """Tell whether the SDK's chain has somewhere to look; asks no service."""
    found = os.environ
    if found.get("AWS_ACCESS_KEY_ID") and found.get("AWS_SECRET_ACCESS_KEY"):
        return True
    if any(found.get(name) for name in _GIVEN_BY) or found[_METADATA].lower() == "false":
        return True
    files = {"AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials", "AWS_CONFIG_FILE": "~/.aws/config"}
    return any(Path(found.get(name) or path).expanduser().is_file() for name, path in files.items())
