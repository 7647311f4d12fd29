"""The history store: whole entries or none, damage set aside, uploads that were cut off."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prx.errors import UserError
from sweeps.history.store import RECORD, HistoryStore

KEY, OTHER = "ab" + 30 * "0", "cd" + 30 * "1"


@pytest.fixture
def store(tmp_path) -> HistoryStore:
    return HistoryStore(tmp_path / "history")


@pytest.fixture
def source(tmp_path) -> Path:
    folder = tmp_path / "source"
    (folder / "inner").mkdir(parents=True)
    (folder / "one.bin").write_bytes(b"1" * 5_000_000)
    (folder / "inner" / "two.bin").write_bytes(b"two")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def damage(store: HistoryStore, name: str, change) -> None:
    entry = store.get(KEY)
    path = Path(f"{store.folder(KEY)}/{entry.attempt}/{name}")
    change(path)


def test_what_is_put_comes_back_whole(store, source, tmp_path):
    assert store.get(KEY) is None
    put = store.put(KEY, "state", {"step": 100, "seconds": 1.5}, source)
    again = HistoryStore(store.uri).get(KEY)
    assert again == put
    assert again.size == 5_000_003
    assert store.fetch(again, tmp_path / "out" / "state")
    assert contents(tmp_path / "out" / "state") == contents(source)
    assert store.damage == []


def test_first_entry_of_a_key_stays_and_files_can_be_added(store, source):
    bare = store.put(KEY, "state", {"step": 1})
    assert bare.files == {}
    assert store.put(KEY, "state", {"step": 2}).record == {"step": 1}
    with_files = store.put(KEY, "state", {"step": 1}, source)
    assert with_files.files
    assert store.put(KEY, "state", {"step": 3}, source) == with_files


def test_reader_ignores_what_has_no_record(store, source):
    store.put(KEY, "state", {}, source)
    Path(f"{store.folder(KEY)}/{RECORD}").unlink()
    assert store.get(KEY) is None
    assert list(store.entries()) == []
    found = store.leftovers(older_than_s=-10)
    assert list(found.values()) == [5_000_003]
    assert store.leftovers(older_than_s=60) == {}


def test_committed_files_are_no_leftovers(store, source):
    store.put(KEY, "state", {}, source)
    assert store.leftovers(older_than_s=-10) == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "bytes instead of 5000000"),
        (lambda path: path.write_bytes(b"x" * 5_000_000), "other content"),
        (lambda path: path.unlink(), "is missing"),
    ],
)
def test_damaged_files_are_found_set_aside_and_written_anew(store, source, tmp_path, change, message):
    entry = store.put(KEY, "state", {"step": 7}, source)
    damage(store, "one.bin", change)
    assert not store.fetch(entry, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert list(tmp_path.glob("out.partial*")) == []
    assert len(store.damage) == 1
    assert message in store.damage[0]
    assert store.get(KEY) is None
    assert list(Path(store.folder(KEY)).glob(f"{RECORD}.damaged-*"))
    assert store.fetch(store.put(KEY, "state", {"step": 7}, source), tmp_path / "out")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"key": "other"}', json.dumps({"key": OTHER, "files": {}})])
def test_damaged_record_is_set_aside(store, content):
    store.put(KEY, "state", {"step": 7})
    Path(f"{store.folder(KEY)}/{RECORD}").write_text(content)
    assert store.get(KEY) is None
    assert len(store.damage) == 1
    assert store.put(KEY, "state", {"step": 8}).record == {"step": 8}


def test_files_can_be_dropped_and_the_record_kept(store, source):
    entry = store.put(KEY, "state", {"step": 7}, source)
    store.drop_files(entry)
    found = store.get(KEY)
    assert (found.record, found.files, found.size) == ({"step": 7}, {}, 0)
    assert contents(Path(store.folder(KEY))).keys() == {RECORD}


def test_files_dropped_by_somebody_else_are_no_damage(store, source, tmp_path):
    entry = store.put(KEY, "state", {"step": 7}, source)
    HistoryStore(store.uri).drop_files(entry)
    assert not store.fetch(entry, tmp_path / "out")
    assert store.damage == []
    assert store.get(KEY).record == {"step": 7}
    assert not (tmp_path / "out").exists()


def test_entries_lists_all(store, source):
    store.put(KEY, "state", {"step": 1}, source)
    store.put(OTHER, "measurement", {"cmmd": 0.5})
    assert {(e.key, e.kind) for e in store.entries()} == {(KEY, "state"), (OTHER, "measurement")}


def test_address_that_cannot_be_opened_is_named():
    with pytest.raises(UserError, match=r"--store: 'nowhere://x/y' cannot be opened"):
        HistoryStore("nowhere://x/y")


def test_file_uri_and_folder_are_one_store(tmp_path, source):
    HistoryStore(tmp_path / "history").put(KEY, "state", {"step": 1}, source)
    assert HistoryStore(f"file://{tmp_path}/history").get(KEY).record == {"step": 1}
