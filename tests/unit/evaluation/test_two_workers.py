"""Two processes, each with its share of the images, find the figures of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from evaluation.features import load_extractor
from evaluation.metrics import cmmd, dino_mmd, fid

WORKER = """
import json, sys
import torch
import torch.distributed as dist
from evaluation.features import load_extractor
from evaluation.streaming import CMMD, FID, DinoMMD

store, images, clip, dino, inception = sys.argv[1:6]
rank, shares = int(sys.argv[6]), json.loads(sys.argv[7])
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
extractors = [load_extractor(*pair) for pair in (("clip", clip), ("dino", dino), ("inception", inception))]
metrics = [CMMD(extractors[0].width), DinoMMD(extractors[1].width), FID(extractors[2])]
for real, name in ((True, "real"), (False, "generated")):
    mine = torch.load(images, weights_only=True)[name].split(shares[name])[rank]
    for batch in mine.split(4):
        for metric, extractor in zip(metrics[:2], extractors[:2]):
            metric.update(extractor.embed(batch), real=real)
        metrics[2].update(batch, real=real)
print(json.dumps([float(metric.compute()) for metric in metrics]))
dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("shares", [{"real": [21, 19], "generated": [17, 13]}, {"real": [40, 0], "generated": [3, 27]}])
def test_two_processes_find_what_one_finds(
    weights: dict[str, Path], images: Tensor, tmp_path: Path, shares: dict[str, list[int]]
) -> None:
    generated = (images[:30].float() * 0.6).to(torch.uint8)
    torch.save({"real": images, "generated": generated}, tmp_path / "images.pt")
    paths = [str(tmp_path / "store"), str(tmp_path / "images.pt")]
    paths += [str(weights[role]) for role in ("clip", "dino", "inception")]
    alone = {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[3])}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, *paths, str(rank), json.dumps(shares)],
            env=os.environ | alone, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    found = [json.loads(out.splitlines()[-1]) for out, _ in outputs]
    assert found[0] == found[1]
    expected = []
    for role, distance in (("clip", cmmd), ("dino", dino_mmd), ("inception", fid)):
        extractor = load_extractor(role, weights[role])
        expected.append(distance(extractor.embed(generated), extractor.embed(images)))
    assert found[0][:2] == pytest.approx(expected[:2], rel=1e-5)
    assert found[0][2] == pytest.approx(expected[2], rel=1e-3)
