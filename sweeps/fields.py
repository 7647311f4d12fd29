"""Types of values that several sections of a sweep share."""

from __future__ import annotations

from pydantic import AfterValidator

from prx.registry import choices


def choice(allowed: tuple[str, ...]) -> AfterValidator:
    """Accept one of some words; else name the nearest and the others."""

    def validate(value: str) -> str:
        if value not in allowed:
            raise ValueError(choices(value, list(allowed)))
        return value

    return AfterValidator(validate)
