"""`sonic-kv serve --engine ray`: replicas of the server on Ray Serve.

A replica is the server of one process: the same application, worker and store. Ray Serve routes all requests
of one `x-session-id` to one replica while it lives, and starts another in place of one that died. Nothing is
lost with a replica: a turn is acknowledged when its record is on the store, and a session is a function of
its record, whoever makes it again.
"""

import logging
import os
import re
import signal
import threading
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI

from sonic_kv import errors
from sonic_kv.compress.options import Budget, SessionConfig, default_budget
from sonic_kv.integrations.options import RayOptions
from sonic_kv.model.model import SonicModel
from sonic_kv.server.access import read_keys
from sonic_kv.server.app import make_app
from sonic_kv.server.options import ServeOptions
from sonic_kv.server.run import announce, listen, store_of
from sonic_kv.server.worker import Worker
from sonic_kv.session.options import SamplingConfig

try:
    import ray
    from ray import serve as ray_serve
    from ray.serve.config import AutoscalingConfig, RequestRouterConfig
except ModuleNotFoundError as error:
    raise errors.ConfigError(f"engine ray needs {error.name}: pip install 'sonic-kv[ray]'") from error

APP = "sonic-kv"
# of a Ray of our own: it tells its makers nothing unless asked to, and replicas do not stand back for others
ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
OBJECT_STORE = 100 << 20  # bytes of Ray's shared memory: requests and replies do not pass through it
ATTEMPTS = 2  # at making a replica, before the command gives up
DRAIN_SECONDS = 120.0  # that a replica which is taken away has for the replies under way


class Replica:
    """The server of one process, as Ray Serve runs it."""

    def __init__(
        self,
        load: Callable[[], SonicModel],
        name: str,
        config: SessionConfig,
        budget: Budget | None,
        sampling: SamplingConfig,
        options: ServeOptions,
        keys: tuple[str, ...],
    ) -> None:
        store = store_of(options)  # before the model: it may be refused
        model = load()
        self._worker = Worker(model, config, budget or default_budget(model.adapter), options, store)
        self._app = make_app(self._worker, name, sampling, options, keys)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._app

    def check_health(self) -> None:
        """Ray Serve replaces a replica for which this fails."""
        if not self._worker.alive:
            raise errors.ServeError("the model's thread has ended")


def serve(
    load: Callable[[], SonicModel],
    name: str,
    config: SessionConfig,
    budget: Budget | None,
    sampling: SamplingConfig,
    options: ServeOptions,
    ray_options: RayOptions,
) -> None:
    """Serve until interrupted.

    Args:
        load: makes the model; called in every replica.
        budget: None: the model's default, which an adapter decides.

    Raises:
        SonicError: what a replica raised when it was made, or the options are no good.
    """
    keys = read_keys(options.api_keys)
    store = store_of(options)  # fails here and not there
    if store is not None:
        store.close()
    with listen(options.host, options.port) as listener:
        port = listener.getsockname()[1]
    deployment = _deployment(options, ray_options)
    alone = ray_options.ray_address == "local"
    own: dict[str, Any] = {}
    if alone:
        os.environ.update({**ENVIRONMENT, **os.environ})
        own = {"include_dashboard": False, "object_store_memory": OBJECT_STORE}
    try:
        ray.init(ray_options.ray_address, logging_level="ERROR", **own)
        if alone:
            _check_room(ray_options)
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        quiet = {"log_level": "WARNING", "enable_access_log": False}
        ray_serve.start(http_options={"host": options.host, "port": port}, logging_config=quiet)
        target = deployment.bind(load, name, config, budget, sampling, options, keys)
        try:
            ray_serve.run(target, name=APP, logging_config=quiet)
        except RuntimeError as error:
            raise _reason(error) from error
        announce(name, options.host, port, keys)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)
        threading.Event().wait()
    finally:
        if alone:
            ray_serve.shutdown()
            ray.shutdown()
        elif ray.is_initialized():
            ray_serve.delete(APP)


def _deployment(options: ServeOptions, ray_options: RayOptions) -> Any:
    """How Ray Serve runs replicas, and passes requests on to them."""
    scaling: dict[str, Any] = {"num_replicas": ray_options.replicas}
    if ray_options.max_replicas is not None:
        scaling = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=ray_options.replicas,
                max_replicas=ray_options.max_replicas,
                target_ongoing_requests=ray_options.target_ongoing_requests,
            )
        }
    return ray_serve.deployment(
        ray_serve.ingress()(Replica),
        name="server",
        ray_actor_options={"num_cpus": ray_options.replica_cpus, "num_gpus": ray_options.replica_gpus},
        # what is more than a replica takes goes to the next one, then waits, then is refused
        max_ongoing_requests=options.max_batch + options.max_waiting,
        max_queued_requests=options.max_waiting,
        request_router_config=RequestRouterConfig(request_router_class=ROUTER),
        max_constructor_retry_count=ATTEMPTS,
        graceful_shutdown_timeout_s=DRAIN_SECONDS,
        **scaling,
    )


def _check_room(options: RayOptions) -> None:
    """Raise `ConfigError` if the replicas do not fit on this machine: Ray would wait for another one."""
    there = ray.cluster_resources()
    for kind, each in (("CPU", options.replica_cpus), ("GPU", options.replica_gpus)):
        if options.replicas * each > there.get(kind, 0.0):
            raise errors.ConfigError(
                f"{options.replicas} replicas of {each:g} {kind}s do not fit on this machine, which has "
                f"{there.get(kind, 0.0):g}: give fewer --replicas or less --replica-{kind.lower()}s"
            )


def _reason(error: RuntimeError) -> Exception:
    """The error of this package that kept a replica from being made; any other as it is."""
    status = ray_serve.status().applications[APP]
    texts = [status.message, *(deployment.message for deployment in status.deployments.values())]
    found = re.search(r"^sonic_kv\.errors\.(\w+): (.+)$", "\n".join(texts), re.MULTILINE)
    if found is None:
        return error
    kind: type[errors.SonicError] = getattr(errors, found[1])
    return kind(found[2])
