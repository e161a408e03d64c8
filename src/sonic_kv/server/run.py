"""`sonic-kv serve`: the server from its options."""

import socket
import sys
from collections.abc import Callable
from contextlib import closing, nullcontext
from pathlib import Path

from sonic_kv.compress.options import Budget, SessionConfig, default_budget
from sonic_kv.errors import ConfigError
from sonic_kv.model.model import SonicModel
from sonic_kv.options import parse_bytes
from sonic_kv.server.access import read_keys
from sonic_kv.server.app import make_app
from sonic_kv.server.connections import HttpServer
from sonic_kv.server.folder import FolderStore
from sonic_kv.server.guard import LOOPBACK
from sonic_kv.server.logs import set_up
from sonic_kv.server.options import ServeOptions
from sonic_kv.server.redis import RedisStore
from sonic_kv.server.store import Limits, Store
from sonic_kv.server.worker import Worker
from sonic_kv.session.options import SamplingConfig


def model_name(model: str | None) -> str:
    """What clients call the model: the folder's name, the hub id, or `sonic-default`."""
    if model is None:
        return "sonic-default"
    path = Path(model)
    return path.resolve().name if path.exists() else model


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        ConfigError: the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another --port"
        ) from error
    return listener


def open_store(url: str, limits: Limits, *, beside_others: bool = False) -> Store | None:
    """The store that `url` names: `none`, a folder, `redis://…`, or any URL that fsspec knows.

    Args:
        beside_others: a folder may hold other files too; they are left alone.

    Raises:
        ConfigError: the URL is of no known kind, or the folder is somebody else's.
        StoreError: it cannot be reached.
    """
    if url == "none":
        return None
    if url.startswith(("redis://", "rediss://", "unix://")):
        return RedisStore(url, limits)
    return FolderStore(url, limits, beside_others)


def store_of(options: ServeOptions) -> Store | None:
    """The store that the options name, locked: replicas share one, other servers do not."""
    most = options.store_bytes_per_key
    limits = Limits(options.store_ttl, parse_bytes(options.store_bytes), parse_bytes(most) if most else None)
    store = open_store(options.store, limits, beside_others=options.store_beside_others)
    if store is not None:
        store.lock(shared=options.engine == "ray")
    return store


def announce(name: str, host: str, port: int, keys: tuple[str, ...], scheme: str = "http") -> None:
    """Say on standard error where the model is served, and warn if everybody can reach it."""
    url = f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
    print(f"sonic-kv: {name} at {url} (API: {url}/v1)", file=sys.stderr)
    if not keys and host not in LOOPBACK:
        print(
            "sonic-kv: warning: no API keys: whoever reaches this address can read every dialogue",
            file=sys.stderr,
        )


def serve(
    load: Callable[[], SonicModel],
    name: str,
    config: SessionConfig,
    budget: Budget | None,
    sampling: SamplingConfig,
    options: ServeOptions,
) -> None:
    """Serve until interrupted.

    Args:
        load: makes the model, once its store and its address are had.
        budget: None: the model's default, which an adapter decides.
    """
    keys, name = read_keys(options.api_keys), next(iter(options.served_model_name), name)
    set_up(options.log_level, options.log_format)
    store = store_of(options)
    with (
        closing(store) if store is not None else nullcontext(),
        listen(options.host, options.port) as listener,
    ):
        model = load()
        worker = Worker(model, config, budget or default_budget(model.adapter), options, store)
        app = make_app(worker, name, sampling, options, keys)
        server = HttpServer(app, worker, options)
        scheme = "http" if options.tls_key is None else "https"
        announce(name, options.host, listener.getsockname()[1], keys, scheme)
        server.run([listener])
