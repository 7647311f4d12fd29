"""Addresses of histories: what cannot be used is told at once, and no credential is ever shown."""

from __future__ import annotations

import json
import socket

import pytest

from prx.errors import UserError
from sweeps.history import keys, marker
from sweeps.history.address import credentials, public
from sweeps.history.store import HistoryStore, check
from tests.sweeps.places import KEY_ID, SECRET, paths, s3_uri, write

KEY = "ab" + 30 * "0"


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_EC2_METADATA_DISABLED",
                 "AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def refused(uri: str) -> str:
    """Give the message with which an address is refused; it holds no secret."""
    with pytest.raises(UserError) as error:
        check(uri)
    text = f"{error.value} {error.value.__cause__}"
    assert SECRET not in text
    assert "very%20secret" not in text
    assert text.startswith("--history: ")
    return str(error.value)


def test_scheme_that_nobody_knows():
    assert "'nowhere://x/y' cannot be opened" in refused("nowhere://x/y")
    assert "must carry no credentials but s3://" in refused("nowhere://me:very%20secret@x/y")


def test_s3_without_credentials(s3, monkeypatch, tmp_path):
    uri = s3_uri(s3, "p", user="")
    message = refused(uri)
    assert "no credentials for S3: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in message
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY_ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    check(uri)
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    (tmp_path / "named").write_text(f"[default]\naws_access_key_id = {KEY_ID}\naws_secret_access_key = {SECRET}\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "named"))
    check(uri)


def test_bucket_that_does_not_exist(s3):
    assert "there is no bucket nobodys; create it" in refused(s3_uri(s3, "p", bucket="nobodys"))


def test_server_that_does_not_answer():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        message = refused(s3_uri(f"127.0.0.1:{unused.getsockname()[1]}", "p"))
    assert "cannot be read (" in message
    assert "Could not connect" in message


def test_options_that_nobody_knows(s3):
    assert "has unknown options ['sheme']" in refused(s3_uri(s3, "p").replace("scheme", "sheme"))
    assert "names no bucket" in refused("s3:///prefix")


def test_secret_that_is_not_escaped_is_not_shown(s3):
    raw = s3_uri(s3, "p", user=f"{KEY_ID}:{SECRET}@")
    assert "is no URI; special characters of a key or secret are written as %2F" in refused(raw)
    assert "is no URI" in refused(s3_uri(s3, "p", user="KEY:1234/5@"))


def test_credentials_of_other_stores_stay_in_their_environment():
    assert "must carry no credentials but s3://KEY:SECRET@..." in refused("gs://me:very%20secret@bucket/p")


def test_credentials_go_to_the_environment_and_the_rest_is_public(s3):
    uri = s3_uri(s3, "p")
    found = credentials(uri)
    assert (found["AWS_ACCESS_KEY_ID"], found["AWS_SECRET_ACCESS_KEY"]) == (KEY_ID, SECRET)
    assert public(f"opened {uri} twice") == f"opened {s3_uri(s3, 'p', user='')} twice"
    assert HistoryStore(uri).uri == s3_uri(s3, "p", user="")
    assert credentials("runs/history") == credentials(s3_uri(s3, "p", user="")) == {}


def test_folder_that_cannot_be_made_or_written(tmp_path):
    (tmp_path / "file").write_text("")
    message = refused(str(tmp_path / "file" / "history"))
    assert f"must be a folder that can be written; {tmp_path}/file is not" in message
    assert "must be a folder that can be written" in refused(str(tmp_path / "file"))


def test_folder_of_something_else(address):
    store = HistoryStore(address)
    write(store, f"{store.root}/thesis/chapter.txt", b"precious")
    with pytest.raises(UserError, match=r"holds thesis and no history\.json: it is no history of trained states"):
        HistoryStore(address)
    assert paths(store) == ["thesis/chapter.txt"]


def test_history_from_before_the_marker_is_taken_and_marked(address):
    store = HistoryStore(address)
    store.put(KEY, "state", {"step": 1})
    store.files.delete_file(f"{store.root}/history.json")
    write(store, f"{store.root}/leases/x/y.json", b"{}")
    again = HistoryStore(address)
    assert again.get(KEY).record == {"step": 1}
    again.put("cd" + KEY[2:], "state", {})
    assert "history.json" in paths(store)


@pytest.mark.parametrize("marked", [True, False])
def test_history_of_another_version_is_refused_with_both_named(address, monkeypatch, marked):
    store = HistoryStore(address)
    store.put(KEY, "state", {"step": 1})
    if not marked:
        store.files.delete_file(f"{store.root}/history.json")
    before = paths(store)
    monkeypatch.setattr(marker, "NUMERICS", marker.NUMERICS + 1)
    message = r"was written with numerics 1 .*, this version works with numerics 2 .*; go on with"
    with pytest.raises(UserError, match=message):
        check(address)
    assert paths(store) == before


def test_marker_that_is_damaged(address):
    store = HistoryStore(address)
    for content in (b"", b"{}", b"[1]"):
        write(store, f"{store.root}/history.json", content + b" ")
        with pytest.raises(UserError, match=r"history\.json is damaged; it should be"):
            HistoryStore(address)


def test_keys_and_marker_speak_of_one_number():
    assert json.loads(marker.content())["numerics"] == keys.NUMERICS
