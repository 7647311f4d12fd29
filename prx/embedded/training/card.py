"""Keep what was measured at training in card.json and render it as CARD.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prx.embedded.training.common import Record

_HEAD = """# The embedded weights

Every network here was trained by `python -m prx.embedded build` on procedural 32x32 scenes, from fixed
seeds, on CPU. This file is generated from `card.json`; all figures were measured on scenes that no training
saw, with the half-precision weights as saved.
"""


def update_card(out: Path, records: dict[str, Record], *, extend: bool = False) -> None:
    """Replace (or extend) the records of some roles in card.json and write CARD.md anew."""
    path = out / "card.json"
    known: dict[str, Record] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for role, record in records.items():
        if extend and role not in known:
            continue
        known[role] = {**(known.get(role, {}) if extend else {}), **record, "bytes": weight_bytes(out / role)}
    text = json.dumps(_rounded(known), indent=2, sort_keys=True)
    path.write_text(text + "\n", encoding="utf-8")
    (out / "CARD.md").write_text(render_card(json.loads(text)), encoding="utf-8")


def weight_bytes(folder: Path) -> int:
    """Sum the sizes of a folder's safetensors."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return float(f"{value:.5g}") if isinstance(value, float) else value


def render_card(records: dict[str, Record]) -> str:
    """Render all records as Markdown."""
    parts = [_HEAD, *_training(records), *_reconstruction(records), *_probes(records), *_accuracies(records)]
    return "\n".join(parts).rstrip() + "\n"


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    if not rows:
        return []
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines] + [""]


def _training(records: dict[str, Record]) -> list[str]:
    rows = []
    for role, record in sorted(records.items()):
        steps = " + ".join(str(record[key]) for key in ("pretraining_steps", "steps", "tune_steps") if key in record)
        size = f"{record['bytes'] / 1e6:.2f}"
        facts = [steps, str(record["batch"]), str(record["seed"]), f"{record['parameters']:,}", size]
        rows.append([role, record["objective"], *facts])
    total = sum(record["bytes"] for record in records.values()) / 1e6
    head = ["role", "objective", "steps", "batch", "seed", "parameters", "MB"]
    return ["## Training", "", *_table(head, rows), f"Together {total:.2f} MB of safetensors.", ""]


def _reconstruction(records: dict[str, Record]) -> list[str]:
    rows = [
        [
            role,
            f"{record['psnr_db']:.2f}",
            *(str(record.get(key, "bn")) for key in ("scaling_factor", "shift_factor")),
        ]
        for role, record in sorted(records.items())
        if "psnr_db" in record
    ]
    return ["## Reconstruction", "", *_table(["role", "PSNR (dB)", "scaling", "shift"], rows)]


def _probes(records: dict[str, Record]) -> list[str]:
    rows = []
    for role, record in sorted(records.items()):
        for label, probe in (record.get("patch_probe") or record.get("latent_probe") or {}).items():
            keys = ("accuracy", "majority", "foreground", "foreground_majority", "chance")
            rows.append([role, label, *(f"{100 * probe[key]:.1f}" for key in keys)])
    head = ["role", "label", "all %", "majority %", "foreground %", "foreground majority %", "chance %"]
    note = "Logistic regression from one position (teacher token or latent vector) to its patch's label."
    return ["## Spatial probes", "", note, "", *_table(head, rows)]


def _accuracies(records: dict[str, Record]) -> list[str]:
    kinds = (
        *("accuracy", "accuracy_roughened", "accuracy_after_reconstruction"),
        *("accuracy_long_caption", "class_token_probe"),
    )
    found = {
        f"{role}: {kind.replace('_', ' ')}": record[kind]
        for role, record in sorted(records.items())
        for kind in kinds
        if kind in record
    }
    names = list(next(iter(found.values()), {}))
    rows = [[title, *(f"{100 * values[name]:.1f}" for name in names)] for title, values in found.items()]
    lines = ["## Attributes", "", "Held-out accuracy in per cent.", "", *_table(["what", *names], rows)]
    if "clip" in records:
        retrieval = records["clip"]["retrieval"]
        lines += [
            "## Retrieval",
            "",
            f"Top-1 among {retrieval['candidates']} held-out pairs: image to text "
            f"{100 * retrieval['image_to_text_top1']:.1f} %, text to image "
            f"{100 * retrieval['text_to_image_top1']:.1f} %, chance {100 * retrieval['chance']:.2f} %.",
        ]
    return lines
