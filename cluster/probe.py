"""Ask an address whether a Ray head is there, in a way that always ends.

`ray.init` retries for minutes inside compiled code when nothing answers, and does not say so when the token
is wrong; one call with a deadline tells the cases apart.
"""

from __future__ import annotations


def problem(address: str, timeout_s: float) -> str | None:
    """Return why the head at `HOST:PORT` cannot be used, or nothing when it can.

    Units: seconds.
    """
    import grpc
    import ray
    from ray._private.grpc_utils import init_grpc_channel
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

    # Ray itself never takes a proxy for traffic inside a cluster.
    channel = init_grpc_channel(address, options=[("grpc.enable_http_proxy", 0)])
    try:
        stub = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
        reply = stub.CheckAlive(gcs_service_pb2.CheckAliveRequest(), timeout=timeout_s)
    except grpc.RpcError as error:
        return _explain(error, timeout_s)
    finally:
        channel.close()
    if reply.ray_version != ray.__version__:
        return f"the head runs Ray {reply.ray_version}, this Python has Ray {ray.__version__}"
    return None


def _explain(error: Exception, timeout_s: float) -> str:
    import grpc

    code = error.code() if isinstance(error, grpc.Call) else None
    details = (error.details() or "") if isinstance(error, grpc.Call) else str(error)
    if code == grpc.StatusCode.UNAUTHENTICATED:
        return "a Ray head is there and refuses the token"
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"no answer within {timeout_s:g} s"
    if code == grpc.StatusCode.UNAVAILABLE and "Connection refused" in details:
        return "connection refused"
    reason = details.split("last error:")[-1].strip()
    return f"no Ray head answers ({reason or code})"
