"""The `tracking` section of a sweep: where its runs are copied to."""

from __future__ import annotations

import importlib.util
import netrc
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from prx.errors import Problem, UserError
from prx.strict import Strict
from prx.yamlsource import Source
from sweeps.fields import choice

TRACKERS = ("wandb", "tensorboard", "mlflow")
MODES = ("auto", "online", "offline")
READS: dict[str, tuple[str, ...]] = {
    "wandb": ("project", "entity", "mode"),
    "tensorboard": (),
    "mlflow": ("project", "uri"),
}
"""The settings that each tracker reads."""


class TrackerSpec(Strict):
    """One tracker. Every trial of a sweep is a run, the sweep is a group (W&B) or a tag (MLflow).

    Args:
        use: Which tracker.
        project: The project of W&B, or the experiment of MLflow.
        entity: The user or team of W&B; the key's own unless told.
        mode: For W&B: `offline` keeps the runs in the sweep's folder for `wandb sync`, `online` sends them, `auto`
            does that if a key is known (or as WANDB_MODE says).
        uri: MLflow's tracking URI; MLFLOW_TRACKING_URI, or a SQLite file in the sweep's folder, unless told.
    """

    use: Annotated[str, choice(TRACKERS)]
    project: str = "prx-sweeps"
    entity: str | None = None
    mode: Annotated[str, choice(MODES)] = "auto"
    uri: str | None = None

    def resolved_mode(self) -> str:
        """Give what `mode` means here: online, offline or disabled."""
        if self.mode != "auto":
            return self.mode
        return os.environ.get("WANDB_MODE") or ("online" if has_wandb_key() else "offline")


def problems(trackers: Sequence[TrackerSpec], source: Source) -> Iterator[Problem]:
    """A tracker is named once, and given only what it reads."""
    for index, tracker in enumerate(trackers):
        if tracker.use in [other.use for other in trackers[:index]]:
            yield source.problem(("tracking", index, "use"), f"must be distinct, got {tracker.use!r} twice")
        reads = READS[tracker.use]
        for name in sorted(tracker.model_fields_set - {"use", *reads}):
            message = f"{tracker.use} does not read it; it reads {', '.join(reads) or 'nothing but `use`'}"
            yield source.problem(("tracking", index, name), f"{message}; got {getattr(tracker, name)!r}")


def check_trackers(trackers: Sequence[TrackerSpec]) -> None:
    """Refuse a tracker that cannot work here, before anything is trained.

    Raises:
        UserError: No key for W&B online, or MLflow is not installed. That a service is away is no error: it may come.
    """
    for index, tracker in enumerate(trackers):
        if tracker.use == "wandb" and tracker.resolved_mode() == "online" and not has_wandb_key():
            raise UserError(
                f"tracking[{index}].mode: online needs a key for {_wandb_host()}: set WANDB_API_KEY or run "
                "`wandb login`; or leave it at auto or offline, and send the runs later with `wandb sync`"
            )
        if tracker.use == "mlflow" and importlib.util.find_spec("mlflow") is None:
            raise UserError(
                f"tracking[{index}].use: mlflow is not installed; `pip install 'prx-sweeps[mlflow]'`, or mlflow itself"
            )


def has_wandb_key() -> bool:
    """Say whether W&B knows who this is, from the environment or from `wandb login`. The key itself is not read on."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return netrc.netrc(str(path)).authenticators(_wandb_host()) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _wandb_host() -> str:
    url = os.environ.get("WANDB_BASE_URL")
    if not url:
        import wandb

        url = str(wandb.Settings().base_url)
    return urlsplit(url).netloc  # with the port, as `wandb login` writes it


def plain(trackers: Sequence[TrackerSpec]) -> list[dict[str, Any]]:
    """Give the trackers as data for another process, W&B's mode decided; one that is disabled is left out."""
    found = [
        tracker.model_dump() | ({"mode": tracker.resolved_mode()} if tracker.use == "wandb" else {})
        for tracker in trackers
    ]
    return [one for one in found if one["mode"] != "disabled"]
