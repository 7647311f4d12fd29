"""While a plan is made, the settings of each model are read once, and what is missing is asked for once."""

from __future__ import annotations

import json

import pytest

from prx import loaders
from prx.errors import UserError


def test_settings_are_read_once_and_only_within(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"width": 1}))
    with loaders.reading_once():
        assert loaders.read_config(str(tmp_path)) == {"width": 1}
        path.write_text(json.dumps({"width": 2}))
        assert loaders.read_config(str(tmp_path)) == {"width": 1}
    path.write_text(json.dumps({"width": 3, "depth": 1}))
    assert loaders.read_config(str(tmp_path)) == {"width": 3, "depth": 1}


def test_what_is_missing_is_asked_for_once(monkeypatch):
    asked = []

    def missing(*where):
        asked.append(where)
        raise UserError("not here")

    monkeypatch.setattr(loaders, "_hub_file", missing)
    with loaders.reading_once():
        for _ in range(3):
            with pytest.raises(UserError, match="not here"):
                loaders.read_config("some/model")
    assert len(asked) == 1
    with pytest.raises(UserError, match="not here"):
        loaders.read_config("some/model")
    assert len(asked) == 2
