"""Find, check, hash and quietly load model folders."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CONFIG_FILE = "config.json"
HUB_PATTERNS = ["*.json", "*.safetensors"]


def resolve_folder(path: str | Path) -> Path:
    """Return the local folder of a path or hub id; only a hub id that is not cached may use the network.

    Raises: FileNotFoundError naming the path when it is neither.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if isinstance(path, Path) or not _may_be_hub_id(path):
        raise FileNotFoundError(f"weights folder {path} must exist, got no such folder")
    return _hub_folder(path)


def checked_folder(path: str | Path, *, extra_files: tuple[str, ...] = ()) -> Path:
    """Return the folder once it holds a config, safetensors and every further file that was asked for.

    Raises: FileNotFoundError naming the missing file and the folder.
    """
    folder = resolve_folder(path)
    for name in (CONFIG_FILE, *extra_files):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"weights folder {folder} must contain {name}, got none")
    if not weight_files(folder):
        raise FileNotFoundError(f"weights folder {folder} must contain *.safetensors, got none")
    return folder


def weight_files(folder: Path) -> list[Path]:
    """List a folder's safetensors in name order."""
    return sorted(folder.glob("*.safetensors"))


def folder_hash(folder: Path) -> str:
    """Hash weights and JSON settings, so that any change gives another identity."""
    digest = hashlib.sha256()
    for file in sorted([*folder.glob("*.json"), *weight_files(folder)]):
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]


def read_config(folder: Path) -> dict[str, Any]:
    """Read a model folder's settings."""
    return read_json(folder / CONFIG_FILE)


def read_json(file: Path) -> dict[str, Any]:
    """Read one JSON object.

    Raises: ValueError naming the file if it holds anything else.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} must be JSON, got {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} must hold one JSON object, got {type(found).__name__}")
    return found


def load_model(model_class: Any, folder: Path, **options: Any) -> Any:
    """Load a transformers model in float32 for inference and refuse weights that do not fill it.

    Raises: ValueError for files that cannot be read, or naming the first tensors that they lack: those would
        otherwise stay random.
    """
    import torch
    from safetensors import SafetensorError

    required = {"local_files_only": True, "use_safetensors": True, "output_loading_info": True}
    try:
        with _quiet():
            model, info = model_class.from_pretrained(folder, dtype=torch.float32, **required, **options)
    except (SafetensorError, RuntimeError, OSError) as error:
        raise ValueError(
            f"weights folder {folder} must load as {model_class.__name__}, got {error}"
        ) from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(
            f"weights folder {folder} must fill {model_class.__name__}, got no {', '.join(missing[:3])}"
        )
    return model.eval().requires_grad_(False)


def _may_be_hub_id(path: str) -> bool:
    return path.count("/") == 1 and not path.startswith((".", "/", "~")) and not path.endswith("/")


def _hub_folder(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(hub_id, allow_patterns=HUB_PATTERNS))
    except (OSError, HFValidationError) as error:
        raise FileNotFoundError(
            f"weights {hub_id!r} must be a local folder or a reachable hub id, "
            f"got {type(error).__name__}: {error}"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the load report and progress bar, which list a full CLIP model's text tower as unexpected."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
