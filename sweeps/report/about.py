"""What a run writes down so that its report can say under which circumstances the figures came about."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeps.results import SweepFolder, write_atomic

if TYPE_CHECKING:
    from sweeps.plan import Plan

PACKAGES = ("prx-sweeps", "torch", "deepspeed", "ray", "diffusers", "transformers", "torchmetrics", "optuna", "numpy")
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class About:
    """`environment` is in the order in which it is shown; `left_out` are combinations with their reasons."""

    environment: Mapping[str, str] = field(default_factory=dict)
    sweep_file: str = ""
    sweep_text: str = ""
    left_out: tuple[tuple[Mapping[str, str], tuple[str, ...]], ...] = ()


def record(plan: Plan, folder: SweepFolder) -> None:
    """Write the circumstances of this run into the sweep's folder, replacing an earlier run's."""
    file = plan.source.file
    text = Path(file).read_text(encoding="utf-8") if file and Path(file).is_file() else ""
    left_out = tuple((dict(dropped.levels), dropped.reasons) for dropped in plan.dropped)
    about = About(environment(), Path(file).name if file else "", text, left_out)
    write_atomic(_path(folder), json.dumps(asdict(about), indent=1) + "\n")


def read(folder: SweepFolder) -> About:
    """Read what the last run wrote down; nothing where it was not written by this version."""
    if not _path(folder).is_file():
        return About()
    found: dict[str, Any] = json.loads(_path(folder).read_text(encoding="utf-8"))
    left_out = tuple((dict(levels), tuple(reasons)) for levels, reasons in found.pop("left_out"))
    return About(left_out=left_out, **found)


def environment() -> dict[str, str]:
    """Name versions and devices of this process' machine."""
    import torch

    found = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    found |= {"CPU": f"{_cpu()}, {len(os.sched_getaffinity(0))} cores"}
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    found["GPU"] = ", ".join(f"{gpus.count(name)} × {name}" for name in dict.fromkeys(gpus)) or "none"
    commit = _commit()
    found |= {"git commit": commit} if commit else {}
    installed = {name: _version(name) for name in PACKAGES}
    return found | {name: version for name, version in installed.items() if version}


def _path(folder: SweepFolder) -> Path:
    return folder.root / "about.json"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def _commit() -> str | None:
    """Give the commit of this code, with a mark when files differ from it; None where it is no checkout."""
    if not (ROOT / ".git").exists():
        return None
    try:
        head = _git("rev-parse", "HEAD")
        return head + (" (with changes)" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()
