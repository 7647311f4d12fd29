"""The history store: whole entries or none, damage set aside, uploads that were cut off."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sweeps.history.store import RECORD, HistoryStore, check
from tests.sweeps.places import paths, write

KEY, OTHER = "ab" + 30 * "0", "cd" + 30 * "1"


@pytest.fixture
def store(address) -> HistoryStore:
    return HistoryStore(address)


@pytest.fixture
def source(tmp_path) -> Path:
    folder = tmp_path / "source"
    (folder / "inner").mkdir(parents=True)
    (folder / "one.bin").write_bytes(b"1" * 5_000_000)
    (folder / "inner" / "two.bin").write_bytes(b"two")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_what_is_put_comes_back_whole(store, source, tmp_path, address):
    assert store.get(KEY) is None
    put = store.put(KEY, "state", {"step": 100, "seconds": 1.5}, source)
    again = HistoryStore(address).get(KEY)
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
    store.files.delete_file(f"{store.folder(KEY)}/{RECORD}")
    assert store.get(KEY) is None
    assert list(store.entries()) == []
    found = store.leftovers(older_than_s=-10)
    assert list(found.values()) == [5_000_003]
    assert store.leftovers(older_than_s=60) == {}


def test_committed_files_are_no_leftovers(store, source):
    store.put(KEY, "state", {}, source)
    assert store.leftovers(older_than_s=-10) == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"1" * 4_999_999, "bytes instead of 5000000"), (b"x" * 5_000_000, "other content"), (None, "is missing")],
)
def test_damaged_files_are_found_set_aside_and_written_anew(store, source, tmp_path, content, message):
    entry = store.put(KEY, "state", {"step": 7}, source)
    path = f"{store.folder(KEY)}/{entry.attempt}/one.bin"
    store.files.delete_file(path) if content is None else write(store, path, content)
    assert not store.fetch(entry, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert list(tmp_path.glob("out.partial*")) == []
    assert len(store.damage) == 1
    assert message in store.damage[0]
    assert store.get(KEY) is None
    assert any(f"{RECORD}.damaged-" in path for path in paths(store))
    assert store.fetch(store.put(KEY, "state", {"step": 7}, source), tmp_path / "out")
    assert contents(tmp_path / "out") == contents(source)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"key": "other"}', json.dumps({"key": OTHER, "files": {}})])
def test_damaged_record_is_set_aside(store, content):
    store.put(KEY, "state", {"step": 7})
    write(store, f"{store.folder(KEY)}/{RECORD}", content.encode())
    assert store.get(KEY) is None
    assert len(store.damage) == 1
    assert store.put(KEY, "state", {"step": 8}).record == {"step": 8}


def test_files_can_be_dropped_and_the_record_kept(store, source):
    entry = store.put(KEY, "state", {"step": 7}, source)
    store.drop_files(entry)
    found = store.get(KEY)
    assert (found.record, found.files, found.size) == ({"step": 7}, {}, 0)
    assert paths(store) == [f"{KEY[:2]}/{KEY}/{RECORD}", "history.json"]
    store.drop_files(entry)


def test_files_dropped_by_somebody_else_are_no_damage(store, source, tmp_path, address):
    entry = store.put(KEY, "state", {"step": 7}, source)
    HistoryStore(address).drop_files(entry)
    assert not store.fetch(entry, tmp_path / "out")
    assert store.damage == []
    assert store.get(KEY).record == {"step": 7}
    assert not (tmp_path / "out").exists()


def test_entries_lists_all(store, source):
    store.put(KEY, "state", {"step": 1}, source)
    store.put(OTHER, "measurement", {"cmmd": 0.5})
    assert {(e.key, e.kind) for e in store.entries()} == {(KEY, "state"), (OTHER, "measurement")}


def test_file_uri_and_folder_are_one_store(tmp_path, source):
    HistoryStore(tmp_path / "history").put(KEY, "state", {"step": 1}, source)
    assert HistoryStore(f"file://{tmp_path}/history").get(KEY).record == {"step": 1}


def test_checkpoint_and_local_history_are_one_file_on_the_disk(tmp_path, source):
    store = HistoryStore(tmp_path / "history")
    entry = store.put(KEY, "state", {}, source)
    kept = Path(f"{store.folder(KEY)}/{entry.attempt}/one.bin")
    assert kept.stat().st_ino == (source / "one.bin").stat().st_ino
    (source / "one.bin").unlink()
    assert store.fetch(entry, tmp_path / "out")
    assert (tmp_path / "out" / "one.bin").stat().st_ino == kept.stat().st_ino
    store.drop_files(entry)
    assert (tmp_path / "out" / "one.bin").stat().st_size == 5_000_000


def test_where_files_cannot_be_linked_they_are_copied(tmp_path, source, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("os.link", refuse)
    store = HistoryStore(tmp_path / "history")
    entry = store.put(KEY, "state", {}, source)
    assert store.fetch(entry, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(source)
    assert (tmp_path / "out" / "one.bin").stat().st_nlink == 1


def test_nothing_is_written_before_the_first_entry(store, address):
    check(address)
    assert paths(store) == []
    store.put(KEY, "state", {"step": 1})
    assert paths(store) == [f"{KEY[:2]}/{KEY}/{RECORD}", "history.json"]
    check(address)
    assert len(paths(store)) == 2
