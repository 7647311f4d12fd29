"""Heads of every kind, played by a server in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
import ray
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

from cluster.probe import problem


@contextmanager
def head(answer: Callable[[Any], Any] | None) -> Iterator[str]:
    """Serve the one call that the probe makes, or none, on a port of this machine."""
    server = grpc.server(futures.ThreadPoolExecutor(1))
    if answer:
        servicer = gcs_service_pb2_grpc.NodeInfoGcsServiceServicer()
        servicer.CheckAlive = lambda request, context: answer(context)
        gcs_service_pb2_grpc.add_NodeInfoGcsServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def version(text: str) -> Callable[[Any], Any]:
    return lambda context: gcs_service_pb2.CheckAliveReply(ray_version=text)


def failing(code: grpc.StatusCode) -> Callable[[Any], Any]:
    return lambda context: context.abort(code, "as told")


def test_a_head_of_our_version_is_no_problem():
    with head(version(ray.__version__)) as address:
        assert problem(address, 5) is None


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (version("2.9.0"), f"the head runs Ray 2.9.0, this Python has Ray {ray.__version__}"),
        (failing(grpc.StatusCode.UNAUTHENTICATED), "a Ray head is there and refuses the token"),
        (failing(grpc.StatusCode.INTERNAL), "no Ray head answers (as told)"),
        (None, "no Ray head answers (Method not found!)"),
    ],
)
def test_every_other_answer_is_named(answer, text):
    with head(answer) as address:
        assert problem(address, 5) == text
