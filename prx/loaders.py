"""Find pretrained models: `embedded:ROLE`, a local folder, or a hub id, always through one door."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from prx.errors import UserError

EMBEDDED = "embedded:"
_SAMPLE = 1 << 20


def resolve(path: str) -> str:
    """Turn a configured path into what `from_pretrained` takes.

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
    return path


def options(path: str, subfolder: str | None = None, revision: str | None = None) -> dict[str, Any]:
    """Give the keyword arguments shared by every `from_pretrained` call: safetensors only, pinned."""
    given: dict[str, Any] = {"use_safetensors": True, "local_files_only": Path(path).is_dir()}
    if subfolder:
        given["subfolder"] = subfolder
    if revision:
        given["revision"] = revision
    return given


def load(
    model_class: Any, path: str, subfolder: str | None = None, revision: str | None = None, **given: Any
) -> Any:
    """Load a frozen model whole, in evaluation mode; `given` goes to `from_pretrained`.

    The libraries only log tensors that the file lacks and leave them random.

    Raises:
        UserError: Weights are missing, damaged, incomplete, or of another model.
    """
    target = resolve(path)
    given |= options(target, subfolder, revision)
    try:
        model, info = model_class.from_pretrained(target, output_loading_info=True, **given)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UserError(f"{path!r}: the weights cannot be loaded ({_first_line(error)})") from error
    missing = sorted(str(name) for name in info["missing_keys"])
    if missing:
        count = f"{len(missing)} tensors of {type(model).__name__}"
        raise UserError(f"{path!r}: the weights lack {count}, the first is {missing[0]}")
    return model.eval().requires_grad_(False)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].strip()


def read_config(path: str, subfolder: str | None = None, revision: str | None = None) -> dict[str, Any]:
    """Read a model's config.json without its weights.

    Raises:
        UserError: There is none; the message says which file is missing and how to get it.
    """
    target = resolve(path)
    folder = Path(target) / (subfolder or "")
    if Path(target).is_dir():
        return _read_json(folder / "config.json")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        found = hf_hub_download(target, "config.json", subfolder=subfolder, revision=revision)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        name = f"{subfolder}/config.json" if subfolder else "config.json"
        raise UserError(
            f"{path!r} is neither a local folder nor a reachable hub model: {name} is missing. Save the model "
            f"to a folder with save_pretrained() and give its path, or download it with: hf download {target}"
        ) from error
    return _read_json(Path(found))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        changed = path.stat().st_mtime_ns
    except OSError:
        raise UserError(f"{path} is missing; a model folder is what save_pretrained() writes") from None
    return _parsed(path, changed)


@lru_cache(maxsize=256)
def _parsed(path: Path, changed: int) -> dict[str, Any]:
    """Parse a file once as long as it does not change: a plan of many cells asks for it in every one."""
    del changed
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} must hold a JSON object, as save_pretrained() writes it")
    return found


def identity(path: str, subfolder: str | None = None, revision: str | None = None) -> str:
    """Hash what a model's outputs depend on: its configs and its weights' size, head and tail.

    A hub id is named by its pinned revision, or by the id alone where none is given.
    """
    target = resolve(path)
    folder = Path(target) / (subfolder or "")
    if not folder.is_dir():
        return f"{target}/{subfolder or ''}@{revision or 'main'}"
    digest = hashlib.blake2b(digest_size=12)
    for file in sorted(folder.iterdir()):
        if file.suffix in {".json", ".safetensors", ".model"}:
            digest.update(f"{file.name}:{file.stat().st_size}".encode())
            digest.update(_ends(file))
    return digest.hexdigest()


def _ends(file: Path) -> bytes:
    size = file.stat().st_size
    with file.open("rb") as handle:
        head = handle.read(_SAMPLE)
        handle.seek(max(0, size - _SAMPLE))
        return head + handle.read(_SAMPLE)
