"""Errors that a user can act on: one message, with file, line, config path, rule and value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong in what the user gave us."""

    path: str
    message: str
    file: str | None = None
    line: int | None = None

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}: " if self.file and self.line else f"{self.file}: " if self.file else ""
        return f"{where}{self.path}: {self.message}" if self.path else f"{where}{self.message}"


class UserError(ValueError):
    """Input or environment is wrong; nothing was trained. Command lines print it and exit with 2."""


class ConfigError(UserError):
    """One or several problems of a configuration, all of them at once."""

    def __init__(self, problems: Sequence[Problem]):
        self.problems = list(problems)
        super().__init__("\n".join(str(p) for p in self.problems))

    def __reduce__(self) -> tuple[type[ConfigError], tuple[list[Problem]]]:
        # Exceptions cross process borders on a cluster; the default would call __init__ with the text.
        return ConfigError, (self.problems,)


class DataError(UserError):
    """A data set cannot be read as the configuration says it should."""


class NonFiniteError(RuntimeError):
    """Loss, gradient or a sampled picture stopped being a number; raised before the optimizer moves."""
