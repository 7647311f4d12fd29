"""Rebuild the embedded weights or write the embedded data set from the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from prx.embedded import ROLES, weights_folder
from prx.embedded.dataset import PHOTOGRAPHED, SPLIT_SEEDS, write_dataset


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; exit code 2 means that the arguments were wrong."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "dataset":
            photographed = options.split in PHOTOGRAPHED
            write_dataset(options.out, num=options.num, seed=SPLIT_SEEDS[options.split], photographed=photographed)
            print(f"{options.num} scenes of split {options.split} are in {options.out}")
        else:
            # Training needs the heavy libraries, writing a data set does not.
            from prx.embedded.training.build import build

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


if __name__ == "__main__":
    sys.exit(main())
