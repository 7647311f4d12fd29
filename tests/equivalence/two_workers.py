"""What one of two workers runs in `test_workers`: train, and let the first write what was trained."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from prx.config import parse_run_config
from prx.engine import rank_and_world
from prx.errors import NonFiniteError
from prx.techniques.contrastive import Contrastive
from prx.trainer import Trainer
from prx.yamlsource import read_yaml
from tests.helpers import same, weights


def train(config: Path, cache: Path, folder: Path, steps: int) -> dict[str, Any]:
    """Train, save, resume in a second trainer, train one step more, and draw the pictures."""
    run = parse_run_config(read_yaml(config).data)
    trainer = Trainer(run, folder=folder, cache=cache)
    reports = [trainer.advance(step + 1) for step in range(steps)]
    trainer.save()
    trained = weights(trainer)
    trainer.close()
    resumed = Trainer(run, folder=folder, cache=cache)
    assert resumed.resume() == steps
    after = resumed.advance(steps + 1)
    found = {
        "losses": [report.loss for report in (*reports, after)],
        "terms": reports[-1].terms,
        "weights": trained,
        "images": resumed.sample(),
        "failure": fail_on_the_last_worker(resumed),
    }
    resumed.close()
    return found


def fail_on_the_last_worker(trainer: Trainer) -> str:
    """Break one term where the rank is highest; every worker must hear of it and keep its weights."""
    rank, world = rank_and_world()
    before, healthy = weights(trainer), Contrastive.forward
    if rank == world - 1:
        Contrastive.forward = lambda self, view: view.velocity.sum() * float("nan")
    try:
        trainer.advance(trainer.step + 1)
    except NonFiniteError as error:
        assert same(weights(trainer), before)
        return str(error)
    finally:
        Contrastive.forward = healthy
    raise AssertionError("a loss that is no number went unnoticed")


if __name__ == "__main__":
    import os

    torch.set_num_threads(1)
    config, cache, folder, result = map(Path, sys.argv[1:5])
    found = train(config, cache, folder, int(sys.argv[5]))
    torch.save(found, f"{result}.{os.environ['RANK']}")
