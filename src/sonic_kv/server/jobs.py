"""A request that is being carried out."""

from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

from sonic_kv.compress.options import Budget
from sonic_kv.server.dialogue import Step, budget_of, messages_of
from sonic_kv.server.requests import Request, View
from sonic_kv.server.shelf import Node
from sonic_kv.session.dialogue import Dialogue

T = TypeVar("T")


def view_of(node: Node) -> View:
    """A session as clients see it."""
    budget = budget_of(node.steps) or Budget()
    return View(node.name, messages_of(node.steps), budget, node.session.stats, node.session)


def pass_on(to: "Future[T]", done: "Future[T]") -> None:
    """Make one future end as another has."""
    error = done.exception()
    if error is None:
        to.set_result(done.result())
    else:
        to.set_exception(error)


@dataclass(eq=False)
class Job:
    """A request that has been taken up: what it goes on from, and what was set aside for it."""

    request: Request
    base: Node | None
    entries: int  # that its session holds at most
    steps: list[Step]
    keys: list[str]  # of the states that it can go on from
    name: str | None = None
    parent: str | None = None
    grandparent: str | None = None
    cached_tokens: int = 0
    session: Dialogue | None = None  # as far as it is fed
