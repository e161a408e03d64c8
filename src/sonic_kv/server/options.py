"""Options of the server."""

from dataclasses import dataclass
from typing import Literal

from sonic_kv.options import Options, option, require

Engine = Literal["local", "vllm", "ray"]
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["text", "json"]


@dataclass(frozen=True)
class ServeOptions(Options):
    """Where the server listens, and what it may use."""

    host: str = option("127.0.0.1", "address to listen on; 0.0.0.0 lets other machines in: set API keys then")
    port: int = option(8000, "port to listen on; 0: any free one", least=0, below=1 << 16)
    api_keys: str | None = option(
        None,
        "file of API keys, one a line; SONIC_KV_API_KEYS (separated by commas) adds to it; without it: open to all",
    )
    tls_certificate: str | None = option(
        None, "file of a certificate chain in PEM form: HTTPS is served, with tls_key", flag=False
    )
    tls_key: str | None = option(None, "file of the certificate's private key", flag=False)
    cors_origins: tuple[str, ...] = option((), "origins whose pages may call this server from a browser")
    served_model_name: tuple[str, ...] = option((), "names of the model for clients; the first is shown")
    log_level: LogLevel = option("warning", "the least that is logged; info logs every request")
    log_format: LogFormat = option("text", "log lines as text or as JSON")
    kv_memory: str = option("2GiB", "limit of the keys and values of all dialogues together", size=True)
    kv_memory_per_key: str | None = option(
        None, "the same of one API key's dialogues; without it: as of all", size=True, flag=False
    )
    max_batch: int = option(
        16, "most replies at the same time; an API key without any gets one even beyond this", least=1
    )
    max_waiting: int = option(64, "requests that may wait; more are refused with 503", least=1)
    max_waiting_per_key: int = option(
        32, "requests of one API key that may wait; more are refused with 429", least=1, flag=False
    )
    queue_timeout: float = option(
        60.0, "seconds a request may wait to be taken up; then it is refused with 503", above=0.0, flag=False
    )
    drain_seconds: float = option(
        30.0,
        "when told to stop, the server ends within this time; most of it is for replies under way",
        least=1.0,
    )
    max_connections: int = option(
        512, "connections at once; beyond it the idlest is closed", least=8, flag=False
    )
    slice_tokens: int = option(
        256, "tokens fed at once between two decode steps of the other dialogues", least=1, flag=False
    )
    max_dialogue_tokens: int | None = option(
        None, "most tokens of a dialogue; without it: eight times the model's positions", least=1, flag=False
    )
    max_body: str = option("4MiB", "largest request body", size=True, flag=False)
    max_reply_tokens: int = option(4096, "most tokens that a request may ask for", least=1, flag=False)
    min_compression_ratio: float = option(
        0.0, "least compression: a request that asks for less gets this", least=0.0, below=1.0, flag=False
    )
    pressure_ratio: float | None = option(
        None,
        "compress idle dialogues to this ratio before they leave memory; without it: they leave as they are",
        least=0.0,
        below=1.0,
    )
    store: str = option(
        "~/.cache/sonic-kv/sessions", "where dialogues are kept: a folder, an fsspec URL, redis://…, or none"
    )
    store_after: float = option(
        5.0, "seconds until an idle dialogue's cache is written to the store", least=0.0
    )
    store_ttl: float = option(
        7 * 86400.0, "seconds after which an unused dialogue is forgotten", above=0.0, flag=False
    )
    store_bytes: str = option(
        "10GiB", "size of the store; beyond it the oldest caches go, then the oldest dialogues", size=True
    )
    store_bytes_per_key: str | None = option(
        None, "size of what the store keeps for one API key; without it: as the whole", size=True, flag=False
    )
    store_beside_others: bool = option(
        False, "the store's folder may hold other files too; they are left alone", flag=False
    )
    engine: Engine = option(
        "local",
        "what serves: this process (local), this process while a vLLM server decodes (vllm), or replicas of it (ray)",
    )
    vllm_url: str | None = option(None, "the vLLM server that engine=vllm decodes on, as http://host:port")
    vllm_folder: str = option(
        "~/.cache/sonic-kv/exports",
        "folder of exported sessions, the same as in vLLM's connector; unused ones go as in the store",
    )
    vllm_timeout: float = option(
        120.0, "seconds without a sign from vLLM after which a reply fails", above=0.0, flag=False
    )

    def check(self) -> None:
        require(
            (self.tls_certificate is None) == (self.tls_key is None),
            "tls_certificate and tls_key go together",
        )
        require(
            self.engine != "ray" or self.tls_key is None,
            "engine ray serves HTTP: put a proxy in front of it for TLS",
        )
        require(
            self.engine != "ray" or self.store != "none",
            "engine ray needs a store that all replicas reach: a dialogue outlives its replica there",
        )
        url = self.vllm_url
        require(
            url is None or url.startswith(("http://", "https://")),
            f"vllm_url={url!r} must be http://host:port",
        )
        require((self.engine == "vllm") == (url is not None), "engine='vllm' and vllm_url go together")
