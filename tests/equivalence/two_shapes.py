"""What one of two workers runs in `test_reshard`: go on from one worker's checkpoints, and leave its own."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from prx.config import parse_run_config
from prx.trainer import Trainer
from prx.yamlsource import read_yaml
from tests.helpers import weights

if __name__ == "__main__":
    import os

    torch.set_num_threads(1)
    config, cache, folder, result = map(Path, sys.argv[1:5])
    found = {}
    for name, settings in read_yaml(config).data.items():
        trainer = Trainer(parse_run_config(settings), folder=folder / name, cache=cache)
        start = trainer.resume()
        found[name] = {"start": start, "weights": weights(trainer), "images": trainer.sample()}
        trainer.engine.save(folder / name / "again")
        trainer.advance(start + 2)
        trainer.save()
        trainer.close()
    torch.save(found, f"{result}.{os.environ['RANK']}")
