"""Reads back what trackers wrote: W&B's offline runs and TensorBoard's event files."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BLOCK = 32 * 1024
FULL, FIRST, LAST = 1, 2, 4


def wandb_records(path: Path) -> Iterator[Any]:
    """Read a `.wandb` file: a header, then the framing of LevelDB's logs around protocol buffers."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, offset, parts = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while offset + 7 <= len(data):
        if BLOCK - offset % BLOCK < 7:
            offset += BLOCK - offset % BLOCK
            continue
        length, kind = struct.unpack("<HB", data[offset + 4 : offset + 7])
        if not kind:
            return
        parts = (b"" if kind in (FULL, FIRST) else parts) + data[offset + 7 : offset + 7 + length]
        offset += 7 + length
        if kind in (FULL, LAST):
            yield Record.FromString(parts)


@dataclass
class WandbRun:
    """What one offline run holds."""

    folder: Path
    id: str = ""
    name: str = ""
    group: str = ""
    project: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None

    @property
    def steps(self) -> list[int]:
        """The steps of its history, in the order in which they were logged."""
        return [row["_step"] for row in self.history]

    def images(self) -> list[Path]:
        """The files of its sample grids, in the order of the history."""
        return [self.folder / "files" / row["samples"]["path"] for row in self.history if "samples" in row]


def wandb_runs(folder: Path) -> list[WandbRun]:
    """Read all offline runs under a folder."""
    return [_wandb_run(path) for path in sorted(folder.glob("offline-run-*/*.wandb"))]


def _wandb_run(path: Path) -> WandbRun:
    found = WandbRun(path.parent)
    for record in wandb_records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = record.run
            found.id, found.name, found.group, found.project = run.run_id, run.display_name, run.run_group, run.project
            found.config |= {item.key: json.loads(item.value_json) for item in run.config.update}
        elif kind == "history":
            row: dict[str, Any] = {}
            for item in record.history.item:
                place = row
                *outer, last = item.nested_key or [item.key]
                for key in outer:
                    place = place.setdefault(key, {})
                place[last] = json.loads(item.value_json)
            found.history.append(row)
        elif kind == "summary":
            found.summary |= {
                ".".join(item.nested_key or [item.key]): json.loads(item.value_json) for item in record.summary.update
            }
        elif kind == "exit":
            found.exit_code = record.exit.exit_code
    return found


def tensorboard_values(folder: Path) -> dict[str, list[tuple[int, Any]]]:
    """Read the event files of a run: for every tag its steps and scalars, or images as PNG."""
    from tensorboardX.proto.event_pb2 import Event

    found: dict[str, list[tuple[int, Any]]] = {}
    for path in sorted(folder.glob("events*")):
        data, offset = path.read_bytes(), 0
        while offset < len(data):
            (length,) = struct.unpack("<Q", data[offset : offset + 8])
            event = Event.FromString(data[offset + 12 : offset + 12 + length])
            offset += 16 + length
            for value in event.summary.value:
                content = value.image.encoded_image_string or value.simple_value
                found.setdefault(value.tag, []).append((event.step, content))
    return found
