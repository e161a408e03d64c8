"""Options of replicas on Ray Serve."""

from dataclasses import dataclass

from sonic_kv.options import Options, option, require


@dataclass(frozen=True)
class RayOptions(Options):
    """Replicas of the server on Ray Serve; each has the model and all limits of the server to itself."""

    replicas: int = option(1, "replicas of the server; the fewest, if there may be more", least=1)
    max_replicas: int | None = option(
        None,
        "add replicas under load, up to this many, and take them away later; without it: always the same number",
    )
    target_ongoing_requests: float = option(
        8.0, "requests in hand per replica above which one is added", above=0.0, flag=False
    )
    replica_cpus: float = option(
        1.0, "CPU cores that Ray sets aside for a replica; also its threads", above=0.0
    )
    replica_gpus: float = option(
        0.0, "GPUs that Ray sets aside for a replica; with --device cuda usually 1", least=0.0
    )
    ray_address: str = option(
        "local", "local: a Ray of its own on this machine; auto or HOST:PORT: a cluster that runs already"
    )

    def check(self) -> None:
        require(
            self.max_replicas is None or self.max_replicas >= self.replicas,
            f"max_replicas={self.max_replicas} is below replicas={self.replicas}",
        )
