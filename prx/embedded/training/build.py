"""Train several roles side by side and write their card."""

from __future__ import annotations

import multiprocessing
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch

from prx.embedded import ROLES, weights_folder
from prx.embedded.training.card import update_card
from prx.embedded.training.ceiling import reading_after_reconstruction
from prx.embedded.training.common import Job, Record
from prx.embedded.training.recipes import NEEDS, RECIPES


def build(out: Path, roles: Sequence[str], *, quick: bool = False, processes: int = 2) -> None:
    """Train roles in parallel, each after the roles it starts from, and write the card.

    Raises:
        ValueError: A smoke run would overwrite the shipped weights, or a role's prerequisite is missing.
    """
    _check(out, roles, quick, processes)
    out.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        for role, record in _run(pool, out, roles, quick):
            update_card(out, {role: record})
            print(f"{role}: done", flush=True)
    update_card(out, reading_after_reconstruction(Job(out, quick)), extend=True)
    shutil.rmtree(out / ".work", ignore_errors=True)


def _check(out: Path, roles: Sequence[str], quick: bool, processes: int) -> None:
    if quick and out.resolve() == weights_folder(ROLES[0]).parent.resolve():
        raise ValueError("--quick must not overwrite the shipped weights: give another folder with --out")
    if processes < 1:
        raise ValueError(f"--processes must be at least 1, got {processes}")
    for role in roles:
        for need in NEEDS.get(role, ()):
            if need not in roles and not (out / need / "config.json").exists():
                raise ValueError(f"--roles: {role} starts from {need}: name it too or build it first")


def _run(pool: ProcessPoolExecutor, out: Path, roles: Sequence[str], quick: bool) -> Iterator[tuple[str, Record]]:
    """Yield (role, record) as trainings end, starting each role once nothing it needs is open."""
    waiting = [role for role in RECIPES if role in roles]
    open_roles: dict[Future[Any], str] = {}
    while waiting or open_roles:
        unfinished = {*waiting, *open_roles.values()}
        for role in [role for role in waiting if unfinished.isdisjoint(NEEDS.get(role, ()))]:
            waiting.remove(role)
            open_roles[pool.submit(train_role, role, out, quick)] = role
        for future in wait(open_roles, return_when=FIRST_COMPLETED).done:
            yield open_roles.pop(future), future.result()


def train_role(role: str, out: Path, quick: bool) -> Record:
    """Train one role in this process on one thread, which also makes its sums reproducible."""
    torch.set_num_threads(1)
    return RECIPES[role](Job(out, quick))
