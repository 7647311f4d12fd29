"""Find, check, hash and quietly load model folders."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = f"{WEIGHTS_FILE}.index.json"
HUB_PATTERNS = ["*.json", "*.safetensors"]


def resolve_folder(path: str | Path) -> Path:
    """Return the local folder of a path or hub id, which may pin its revision: ORG/NAME@REVISION.

    Only a hub id that is not cached may use the network, and none does with HF_HUB_OFFLINE=1.

    Raises: FileNotFoundError naming the path when it is neither.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if isinstance(path, Path) or not _may_be_hub_id(path.partition("@")[0]):
        raise FileNotFoundError(f"weights folder {path} must exist, got no such folder")
    return _hub_folder(path)


def checked_folder(path: str | Path, *, extra_files: tuple[str, ...] = ()) -> Path:
    """Return the folder once it holds a config, whole safetensors and every further file that was asked for.

    Raises: FileNotFoundError naming the missing file, the folder, and how to get it.
    """
    folder = resolve_folder(path)
    for name in (CONFIG_FILE, *extra_files, *_weight_names(folder)):
        if not (folder / name).is_file():
            rule = f"weights folder {folder} must contain {name}"
            raise FileNotFoundError(f"{rule}, {_instead(folder, name)}; {_how(path, folder)}")
    return folder


def _weight_names(folder: Path) -> list[str]:
    """Name the file that holds the weights, or the shards that its index lists."""
    if (folder / WEIGHTS_FILE).is_file() or not (folder / INDEX_FILE).is_file():
        return [WEIGHTS_FILE]
    shards = read_json(folder / INDEX_FILE).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ValueError(f"{folder / INDEX_FILE} must have a weight_map that names the shards, got {shards!r}")
    return sorted(set(shards.values()))


def _instead(folder: Path, name: str) -> str:
    pickles = sorted(file.name for file in folder.glob("*.bin"))
    if name != WEIGHTS_FILE or not pickles:
        return "got none"
    return f"got only {pickles[0]}, a pickle, which is never read: pin a revision with safetensors (ORG/NAME@REVISION)"


def _how(path: str | Path, folder: Path) -> str:
    if Path(path).expanduser().is_dir():
        return f"a published model is copied there by: hf download ORG/NAME --local-dir {folder}"
    hub_id, _, revision = str(path).partition("@")
    return f"get it with: hf download {hub_id}{f' --revision {revision}' if revision else ''}"


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


def _hub_folder(path: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError

    hub_id, _, revision = path.partition("@")
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    try:
        found = snapshot_download(
            hub_id,
            revision=revision or None,
            allow_patterns=HUB_PATTERNS,
            ignore_patterns=["*/*"],
            local_files_only=offline,
        )
    except GatedRepoError as error:
        page = f"https://huggingface.co/{hub_id}"
        raise FileNotFoundError(
            f"weights {path!r} are gated: accept their terms at {page} and log in with: hf auth login"
        ) from error
    except (OSError, ValueError) as error:  # every error of the hub's client is one or the other
        why = "HF_HUB_OFFLINE=1 and no copy on this machine" if offline else f"{type(error).__name__}: {error}"
        raise FileNotFoundError(
            f"weights {path!r} must be a local folder or a reachable hub id, got {why}; {_how(path, Path(path))}"
        ) from error
    return Path(found)


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
