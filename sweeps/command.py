"""What the command lines share."""

from __future__ import annotations

import sys

import typer

from prx.errors import UserError


def run_app(app: typer.Typer) -> None:
    """Run a command line; what the user can mend is one message and exit code 2."""
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
