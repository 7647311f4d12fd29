"""Attach to Ray: addresses that do not answer, and one instance of our own."""

from __future__ import annotations

import json
import os
import platform
import socket

import pytest

from cluster import authentication
from cluster.connect import ConnectError, _left_by_job, attach, check

NOWHERE = "127.0.0.1:9"


@pytest.fixture(autouse=True)
def no_cluster_around(monkeypatch, tmp_path):
    for name in ("RAY_ADDRESS", authentication.MODE, authentication.TOKEN, authentication.TOKEN_PATH):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def refused(address, tmp_path, timeout_s=20.0):
    with pytest.raises(ConnectError) as error:
        attach(address, num_cpus=None, log_dir=tmp_path, timeout_s=timeout_s)
    return str(error.value)


def test_a_closed_port_ends_with_one_message(tmp_path):
    text = refused(NOWHERE, tmp_path)
    assert "\n" not in text
    assert text.startswith(f"--address: no Ray cluster to use at {NOWHERE}: connection refused (no token")
    assert "RAY_AUTH_MODE=token ray start --head" in text
    assert authentication.WHERE in text


def test_the_variable_is_named_where_the_address_came_from_it(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", NOWHERE)
    assert refused(None, tmp_path).startswith(f"RAY_ADDRESS: no Ray cluster to use at {NOWHERE}")


def test_a_port_that_accepts_and_stays_silent_ends_with_the_timeout(tmp_path):
    with socket.create_server(("0.0.0.0", 0)) as server:
        port = server.getsockname()[1]
        assert "no answer within 1 s" in refused(f"127.0.0.1:{port}", tmp_path, timeout_s=1)


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("http://127.0.0.1:8265", "which is a job server: use `python -m cluster submit"),
        ("ray://head:10001", "must be HOST:PORT of a Ray head, auto or local, got ray://head:10001"),
        ("head", "must be HOST:PORT of a Ray head, auto or local, got head"),
    ],
)
def test_an_address_of_another_kind_is_refused(address, text, tmp_path):
    assert text in refused(address, tmp_path)


def test_a_token_file_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv(authentication.TOKEN_PATH, str(tmp_path / "absent"))
    assert "RAY_AUTH_TOKEN_PATH must name a readable file" in refused(NOWHERE, tmp_path)


def test_a_token_that_is_there_is_sent(tmp_path, monkeypatch):
    monkeypatch.setenv(authentication.TOKEN, "made-for-this-test")
    assert "was sent" in refused(NOWHERE, tmp_path)
    assert authentication.MODE not in os.environ


def test_a_check_says_the_same_without_connecting(tmp_path):
    import ray

    with pytest.raises(ConnectError, match="connection refused"):
        check(NOWHERE)
    check(None)
    check("local")
    assert not ray.is_initialized()


def test_what_the_job_sets_is_left_to_it(monkeypatch):
    wanted = {"OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}
    assert _left_by_job(wanted) == wanted
    job = {"runtime_env": {"env_vars": {"WANDB_MODE": "offline"}}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(job))
    assert _left_by_job(wanted) == {"OMP_NUM_THREADS": "1"}


def listening(process):
    """Return the addresses beyond loopback on which a process tree listens."""
    tree = [process, *process.children(recursive=True)]
    found = [link for each in tree for link in each.net_connections(kind="inet") if link.status == "LISTEN"]
    assert found
    return [link.laddr.ip for link in found if not link.laddr.ip.endswith("127.0.0.1")]


def test_an_instance_of_our_own(tmp_path):
    import psutil
    import ray

    settings = {"environment": {"PRX_PLACE": "here"}, "object_store_bytes": 100 * 1024**2}
    with attach(None, num_cpus=2, log_dir=tmp_path / "logs", **settings) as attached:
        assert attached.owned
        assert attached.resources()["CPU"] == 2
        assert [node["CPU"] for node in attached.nodes()] == [2]
        assert attached.ceiling() is None
        assert attached.logs is not None
        assert attached.logs.is_dir()
        assert authentication.TOKEN in os.environ
        assert ray.get(ray.remote(os.getenv).remote("PRX_PLACE")) == "here"
        if platform.system() == "Linux":
            assert listening(psutil.Process()) == []
        again = attach(None, num_cpus=2, log_dir=tmp_path)
        again.close()
        assert ray.is_initialized()
    assert not ray.is_initialized()
    assert authentication.TOKEN not in os.environ
    assert not (tmp_path / "home" / ".ray").exists()
    assert not attached.logs.exists()
    assert list((tmp_path / "logs").glob("session_*/gcs_server.out"))
