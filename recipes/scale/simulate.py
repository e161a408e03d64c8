"""Many sessions on many replicas, as a discrete-event simulation; figures.py runs it.

A session thinks, sends a message, and waits at its replica: for a place in the batch and memory for its cache, for
its cache to come from the store if it is not there, and for its message to be read. Then its reply is decoded beside
all others, the segment is closed, and the cache is written to the store. Idle caches stay on the GPU until others
need the room. Every number is in assumptions.toml with its source.
"""

import random
import sys
from collections import OrderedDict
from collections.abc import Generator
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from statistics import mean, quantiles
from typing import Any

import simpy

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HERE = Path(__file__).parent
Numbers = dict[str, float]
PIECE = 24  # tokens decoded before the speed of a step is looked at again


def assumptions() -> Numbers:
    """All numbers of assumptions.toml, by name."""
    tables = tomllib.loads((HERE / "assumptions.toml").read_text(encoding="utf-8"))
    return {name: float(entry["value"]) for table in tables.values() for name, entry in table.items()}


@dataclass(frozen=True)
class Kind:
    """How caches are kept: shares of all tokens' bytes."""

    name: str
    during: float = 1.0  # in a turn
    idle: float = 1.0  # between turns, and in the store
    closed: float = 0.0  # tokens prefilled per token of a turn, to close it
    affinity: bool = True  # a session comes back to the replica that has its cache


def kinds(n: Numbers) -> list[Kind]:
    closed = n["closing"] * n["kept"]
    return [
        Kind("full context"),
        Kind("80 % removed", n["during"], n["live"], closed),
        Kind("80 % removed, int4 between turns", n["during"], n["int4"], closed),
        Kind("80 % removed, any replica", n["during"], n["live"], closed, affinity=False),
    ]


class Replica:
    """One GPU: places in the batch, memory, a link to the store, and compute that one prefill holds at a time."""

    def __init__(self, env: simpy.Environment, n: Numbers, number: int) -> None:
        self.n, self.number = n, number
        self.places = simpy.Resource(env, int(n["max_batch"]))
        self.room = n["memory"] - n["weights"]
        self.memory = simpy.Container(env, self.room, self.room)
        self.link, self.compute = simpy.Resource(env, 1), simpy.Resource(env, 1)
        self.idle: OrderedDict[int, float] = OrderedDict()  # bytes by session, least recently used first
        self.turns: set[simpy.Process] = set()

    def step(self) -> float:
        """Seconds of one decode step: weights and all caches of the batch are read once."""
        used = self.room - self.memory.level
        return self.n["step_overhead"] + (self.n["weights"] + used) / self.n["bandwidth"]

    def evict(self) -> None:
        while self.idle and sum(self.idle.values()) > self.memory.level:
            self.idle.popitem(last=False)


@dataclass
class Cluster:
    """Replicas, the router, and what is noted about every turn."""

    n: Numbers
    kind: Kind
    replicas: int
    sessions: int
    seed: int = 0
    turns: list[Numbers] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.env, self.rng = simpy.Environment(), random.Random(self.seed)
        self.home: dict[int, Replica] = {}  # where a session's newest cache is, if it is on a GPU
        self.up = [Replica(self.env, self.n, number) for number in range(self.replicas)]
        for number in range(self.sessions):
            self.env.process(self.session(number))

    def route(self, session: int) -> Replica:
        """Rendezvous hashing: no table, and a replica that comes or goes moves its own share of sessions only."""
        if not self.kind.affinity:
            return self.rng.choice(self.up)
        return max(self.up, key=lambda r: blake2b(b"%d %d" % (session, r.number)).digest())

    def session(self, number: int) -> Generator[simpy.Event, Any, None]:
        n, tokens = self.n, self.rng.uniform(0, self.n["longest"])
        yield self.env.timeout(self.rng.expovariate(1 / n["think"]))
        while True:
            reply = max(self.rng.expovariate(1 / n["reply_tokens"]), 1.0)
            note = {"start": self.env.now, "read": 0.0}
            while not (yield from self.attempt(number, tokens, reply, note)):
                pass  # its replica died: the turn is sent again
            note["end"] = self.env.now
            self.turns.append(note)
            tokens += n["user_tokens"] + reply
            if tokens > n["longest"]:
                tokens = 0.0  # another dialogue takes its place
            yield self.env.timeout(self.rng.expovariate(1 / n["think"]))

    def attempt(
        self, number: int, tokens: float, reply: float, note: Numbers
    ) -> Generator[simpy.Event, Any, bool]:
        replica = self.route(number)
        turn = self.env.process(self.turn(replica, number, tokens, reply, note))
        replica.turns.add(turn)
        done: bool = yield turn
        replica.turns.discard(turn)
        return done

    def turn(
        self, replica: Replica, number: int, tokens: float, reply: float, note: Numbers
    ) -> Generator[simpy.Event, Any, bool]:
        n, kind, env = self.n, self.kind, self.env
        per_token = n["token_flops"] / n["flops"]
        need = min((tokens + n["user_tokens"] + reply) * n["token_bytes"] * kind.during, replica.room)
        held = 0.0
        try:
            with replica.places.request() as place:
                yield place
                if need:
                    yield replica.memory.get(need)
                held = need
                resident = replica.idle.pop(number, None) is not None and self.home[number] is replica
                replica.evict()
                note["admitted"] = env.now
                stored = tokens * n["token_bytes"] * kind.idle
                if stored and not resident:
                    with replica.link.request() as link:
                        yield link
                        yield env.timeout(n["latency"] + stored / n["link"])
                    note["read"] += stored
                with replica.compute.request() as compute:
                    yield compute
                    yield env.timeout(n["user_tokens"] * per_token)
                note["first"] = env.now + replica.step()
                left = reply
                while left > 0:
                    piece = min(left, PIECE)
                    left -= piece
                    yield env.timeout(piece * replica.step())
                note["token_time"] = (env.now - note["first"]) / reply
            with replica.compute.request() as compute:
                yield compute
                yield env.timeout(kind.closed * (n["user_tokens"] + reply) * per_token)
            note["written"] = (tokens + n["user_tokens"] + reply) * n["token_bytes"] * kind.idle
            replica.idle[number], self.home[number] = note["written"], replica
            return True
        except simpy.Interrupt:
            return False
        finally:
            if held:
                replica.memory.put(held)
            replica.evict()

    def fail(self, replica: Replica, at: float) -> Generator[simpy.Event, Any, None]:
        """A replica dies with all that it holds; a new one takes its number later."""
        yield self.env.timeout(at)
        self.up.remove(replica)
        for turn in list(replica.turns):
            turn.interrupt()
        yield self.env.timeout(self.n["restart"])
        self.up.append(Replica(self.env, self.n, replica.number))

    def run(self, seconds: float, warm_up: float) -> Numbers:
        """Simulate; what is reported are turns that began after `warm_up` and ended."""
        self.env.run(seconds)
        done = [note for note in self.turns if note["start"] >= warm_up]
        span = seconds - warm_up
        return {
            "turns": len(done) / span,
            "wait": mean(note["admitted"] - note["start"] for note in done),
            "sojourn": mean(note["end"] - note["start"] for note in done),
            "first_token": quantiles([note["first"] - note["start"] for note in done], n=100)[98],
            "token_time": mean(note["token_time"] for note in done),
            "read": sum(note["read"] for note in done) / span,
            "written": sum(note["written"] for note in done) / span,
        }
