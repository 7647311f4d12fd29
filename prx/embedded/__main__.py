"""Rebuild the embedded weights or write the embedded data set from the command line."""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

from prx.embedded import ROLES, weights_folder
from prx.embedded.dataset import SPLIT_SEEDS, write_dataset


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; exit code 2 means that the arguments were wrong."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "dataset":
            write_dataset(options.out, num=options.num, seed=SPLIT_SEEDS[options.split])
            print(f"{options.num} scenes of split {options.split} are in {options.out}")
        else:
            build(options.out, options.roles, quick=options.quick, processes=options.processes)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m prx.embedded", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("build", help="train the weights of every role from seeds")
    train.add_argument("--roles", nargs="+", choices=ROLES, default=list(ROLES), metavar="ROLE")
    train.add_argument("--out", type=Path, default=weights_folder(ROLES[0]).parent)
    train.add_argument("--quick", action="store_true", help="a smoke run of few steps, into --out")
    train.add_argument("--processes", type=int, default=2, help="roles trained at a time, one thread each")
    data = commands.add_parser("dataset", help="write captioned scenes as parquet shards")
    data.add_argument("--out", type=Path, required=True)
    data.add_argument("--num", type=int, required=True)
    data.add_argument("--split", choices=tuple(SPLIT_SEEDS), default="train")
    return parser


def build(out: Path, roles: Sequence[str], *, quick: bool = False, processes: int = 2) -> None:
    """Train roles in parallel, each after the roles it starts from, and write the card.

    Raises:
        ValueError: A smoke run would overwrite the shipped weights, or a role's prerequisite is missing.
    """
    if quick and out.resolve() == weights_folder(ROLES[0]).parent.resolve():
        raise ValueError("--quick must not overwrite the shipped weights: give another folder with --out")
    from prx.embedded.training.card import update_card
    from prx.embedded.training.recipes import NEEDS

    for role in roles:
        for need in NEEDS.get(role, ()):
            if need not in roles and not (out / need / "config.json").exists():
                raise ValueError(f"--roles: {role} starts from {need}: name it too or build it first")
    out.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        for role, record in _run(pool, out, roles, NEEDS, quick):
            update_card(out, {role: record})
            print(f"{role}: done", flush=True)
    shutil.rmtree(out / ".work", ignore_errors=True)


def _run(
    pool: ProcessPoolExecutor, out: Path, roles: Sequence[str], needs: dict[str, tuple[str, ...]], quick: bool
) -> Any:
    """Yield (role, record) as trainings end, starting each role once nothing it needs is open."""
    from prx.embedded.training.recipes import RECIPES

    waiting = [role for role in RECIPES if role in roles]
    open_roles: dict[Future[Any], str] = {}
    while waiting or open_roles:
        unfinished = {*waiting, *open_roles.values()}
        for role in [role for role in waiting if unfinished.isdisjoint(needs.get(role, ()))]:
            waiting.remove(role)
            open_roles[pool.submit(train_role, role, out, quick)] = role
        for future in wait(open_roles, return_when=FIRST_COMPLETED).done:
            yield open_roles.pop(future), future.result()


def train_role(role: str, out: Path, quick: bool) -> dict[str, Any]:
    """Train one role in this process on one thread; one thread also makes the sums reproducible."""
    import torch

    from prx.embedded.training.common import Job
    from prx.embedded.training.recipes import RECIPES

    torch.set_num_threads(1)
    return RECIPES[role](Job(out, quick))


if __name__ == "__main__":
    sys.exit(main())
