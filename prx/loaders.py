"""Find pretrained models: `embedded:ROLE`, a local folder, or a hub id, always through one door.

A hub id can pin its revision as `ORG/NAME@REVISION` wherever a model is named. Weights are safetensors;
pickles are never read. With HF_HUB_OFFLINE=1 nothing is looked up outside this machine.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from prx import modelfiles
from prx.errors import UserError
from prx.modelfiles import CONFIG

EMBEDDED = "embedded:"
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Place:
    """Where a model is: `target` is a folder, or a hub id with its revision; `given` is what was written."""

    given: str
    target: str
    subfolder: str | None
    revision: str | None
    local: bool

    @property
    def how(self) -> str:
        """Say how to get what is missing."""
        if self.given.startswith(EMBEDDED):
            return "make it with: python -m prx.embedded build"
        pinned = f" --revision {self.revision}" if self.revision else ""
        part = f' --include "{self.subfolder}/*"' if self.subfolder else ""
        if self.local:
            command = f"hf download ORG/NAME{part} --local-dir {self.target}"
            return f"a model folder is what save_pretrained() writes, or a published one: {command}"
        return f"get it with: hf download {self.target}{pinned}{part}"


def place(path: str, subfolder: str | None = None, revision: str | None = None) -> Place:
    """Read how a model is named.

    Raises:
        UserError: There is no such role or folder, or the revision is named twice or for a folder.
    """
    target, pinned = resolve(path), revision
    if not Path(target).is_dir() and "@" in target:
        target, _, pinned = target.rpartition("@")
        if revision not in (None, pinned):
            raise UserError(f"{path!r}: the revision must be given once, got {pinned!r} and {revision!r}")
    local = Path(target).is_dir()
    if local and pinned:
        raise UserError(f"{path!r} is a local folder, which has no revision; got {pinned!r}")
    if not local and not _HUB_ID.fullmatch(target):
        raise UserError(f"{path!r} is neither an existing folder nor a hub id (ORG/NAME or ORG/NAME@REVISION)")
    return Place(path, target, subfolder, pinned, local)


def resolve(path: str) -> str:
    """Turn an embedded role into its folder, and `~` into the home folder; leave the rest as it is.

    Raises:
        UserError: An embedded role does not exist.
    """
    if path.startswith(EMBEDDED):
        from prx.embedded import weights_folder

        try:
            folder = weights_folder(path.removeprefix(EMBEDDED))
        except ValueError as error:
            raise UserError(str(error)) from error
        if not folder.is_dir():
            raise UserError(f"{path!r} has no weights; make them with: python -m prx.embedded build")
        return str(folder)
    return str(Path(path).expanduser()) if path.startswith("~") else path


def offline() -> bool:
    """Tell whether only this machine may be asked."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def folder(path: str, subfolder: str | None = None, revision: str | None = None) -> Path:
    """Give the folder with a model's files, downloading those of a hub id.

    Raises:
        UserError: There is no such model, or it cannot be downloaded.
    """
    where = place(path, subfolder, revision)
    root = Path(where.target) if where.local else _snapshot(where, offline())
    return root / (subfolder or "")


def load(model_class: Any, path: str, subfolder: str | None = None, revision: str | None = None, **given: Any) -> Any:
    """Load a frozen model whole, in evaluation mode; `given` goes to `from_pretrained`.

    The libraries only log tensors that the file lacks and leave them random.

    Raises:
        UserError: Weights are missing, damaged, incomplete, or of another model.
    """
    where = place(path, subfolder, revision)
    found = folder(path, subfolder, revision)
    _check_class(model_class, where, modelfiles.read_json(found / CONFIG, where.how))
    diffusers = model_class.__module__.startswith("diffusers.")
    modelfiles.weight_files(found, "diffusion_pytorch_model" if diffusers else "model", where.how)
    given |= {"use_safetensors": True, "local_files_only": True, "ignore_mismatched_sizes": True}
    try:
        model, info = model_class.from_pretrained(found, output_loading_info=True, **given)
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise UserError(f"{path!r}: the weights in {found} cannot be loaded ({_first_line(error)})") from error
    _check_whole(model, where, info)
    return model.eval().requires_grad_(False)


def _check_class(model_class: Any, where: Place, found: dict[str, Any]) -> None:
    """Compare what config.json says the folder holds with what is wanted."""
    if "_class_name" in found or model_class.__module__.startswith("diffusers."):
        wanted, held = model_class.__name__, found.get("_class_name")
    else:
        wanted = getattr(getattr(model_class, "config_class", None), "model_type", None)
        held = found.get("model_type")
    if wanted is not None and held != wanted:
        raise UserError(f"{where.given!r} holds a {held!r}, must hold a {wanted!r}")


def _check_whole(model: Any, where: Place, info: dict[str, Any]) -> None:
    missing, other = sorted(map(str, info["missing_keys"])), sorted(info["mismatched_keys"])
    if missing:
        count = f"{len(missing)} tensors of {type(model).__name__}"
        raise UserError(f"{where.given!r}: the weights lack {count}, the first is {missing[0]}")
    if other:
        name, held, wanted = other[0][:3]
        shapes = f"{name} has shape {list(held)} in the file and {list(wanted)} by config.json"
        raise UserError(f"{where.given!r}: the weights do not fit their own config.json: {shapes}")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].strip()


@contextmanager
def reading_once() -> Iterator[None]:
    """Read the settings of each model once while this lasts: a plan asks for the same few in each of its cells."""
    global _known
    before, _known = _known, {}
    try:
        yield
    finally:
        _known = before


_known: dict[tuple[str, str | None, str | None, str], dict[str, Any] | UserError] | None = None


def read_config(
    path: str, subfolder: str | None = None, revision: str | None = None, name: str = CONFIG
) -> dict[str, Any]:
    """Read a model's config.json, or another of its settings, without its weights.

    Raises:
        UserError: There is none; the message says which file is missing and how to get it.
    """
    if _known is None:
        return _read_config(path, subfolder, revision, name)
    key = (path, subfolder, revision, name)
    if key not in _known:
        try:
            _known[key] = _read_config(*key)
        except UserError as error:
            _known[key] = error
    found = _known[key]
    if isinstance(found, UserError):
        raise found
    return found


def _read_config(path: str, subfolder: str | None, revision: str | None, name: str) -> dict[str, Any]:
    where = place(path, subfolder, revision)
    if where.local:
        return modelfiles.read_json(Path(where.target) / (subfolder or "") / name, where.how)
    return modelfiles.read_json(_hub_file(where, name, offline()), where.how)


def identity(path: str, subfolder: str | None = None, revision: str | None = None) -> str:
    """Name what a model's outputs depend on: a folder by every byte of its settings and weights, a hub
    model by its commit, to which a branch is resolved.
    """
    where = place(path, subfolder, revision)
    if where.local:
        return modelfiles.digest(folder(path, subfolder))
    commit = where.revision or ""
    if not _COMMIT.fullmatch(commit):
        commit = _commit_of(_hub_file(where, CONFIG, offline()))
    return f"{where.target}/{subfolder or ''}@{commit}"


def _commit_of(file: Path) -> str:
    """Read the commit from a path in the hub's cache, .../snapshots/COMMIT/..."""
    parts = file.parts
    return parts[len(parts) - parts[::-1].index("snapshots")]


@lru_cache(maxsize=256)
def _hub_file(where: Place, name: str, local_only: bool) -> Path:
    """Get one file of a hub model, once a process: every look-up asks the hub whether a branch moved."""
    from huggingface_hub import hf_hub_download

    wanted = f"{where.subfolder}/{name}" if where.subfolder else name
    try:
        found = hf_hub_download(
            where.target, name, subfolder=where.subfolder, revision=where.revision, local_files_only=local_only
        )
    except (OSError, ValueError) as error:  # every error of the hub's client is one or the other
        raise UserError(_explain(where, wanted, error, local_only)) from error
    return Path(found)


@lru_cache(maxsize=64)
def _snapshot(where: Place, local_only: bool) -> Path:
    """Get a hub model's files, without pickles and without the folders beside or below it."""
    from huggingface_hub import snapshot_download

    prefix = f"{where.subfolder}/" if where.subfolder else ""
    try:
        found = snapshot_download(
            where.target, revision=where.revision, local_files_only=local_only,
            allow_patterns=[f"{prefix}*{suffix}" for suffix in sorted(modelfiles.KEPT)],
            ignore_patterns=[f"{prefix}*/*", "*.fp16.*", "*.non_ema.*"],
        )  # fmt: skip
    except (OSError, ValueError) as error:
        raise UserError(_explain(where, f"{prefix}*.safetensors", error, local_only)) from error
    return Path(found)


def _explain(where: Place, wanted: str, error: Exception, local_only: bool) -> str:
    """Say which file of a hub model is missing, why, and how to get it."""
    from huggingface_hub import errors

    name = f"{where.target!r} at revision {where.revision!r}" if where.revision else repr(where.target)
    page = f"https://huggingface.co/{where.target}"
    if isinstance(error, errors.GatedRepoError):
        return f"{name} is gated: accept its terms at {page}, log in with: hf auth login, then {where.how}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{where.target!r} has no revision {where.revision!r}; see {page}/tree/main"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"{where.target!r} is no model on the hub and no local folder; if it is private, log in with: hf auth login"
        )
    reason = "nothing is downloaded with HF_HUB_OFFLINE=1" if local_only else _first_line(error)
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        reason = "the model on the hub does not have it"
    return f"{name}: {wanted} is missing on this machine ({reason}); {where.how}"
