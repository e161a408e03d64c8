"""Sessions that requests go on from: found in memory or on the store, or made anew, and fed what is new."""

import logging
import uuid
from collections import Counter
from collections.abc import Sequence

from sonic_kv.compress.compressor import Compressor
from sonic_kv.compress.options import Budget, SessionConfig
from sonic_kv.model.model import SonicModel
from sonic_kv.server.archive import Archive, Found
from sonic_kv.server.dialogue import Step, Told, messages_of, told
from sonic_kv.server.jobs import Job
from sonic_kv.session.dialogue import Dialogue
from sonic_kv.session.engine import Preparing
from sonic_kv.session.state import dialogue_of
from sonic_kv.session.work import Operation

log = logging.getLogger(__name__)


class Preparer:
    """Prepares sessions for their turns.

    Args:
        model: base and adapter.
        config: how sessions keep segments.
        archive: where sessions may be found.
        counts: what happened how often, for the metrics.
        slice_tokens: most tokens of a model run.
    """

    def __init__(
        self,
        model: SonicModel,
        config: SessionConfig,
        archive: Archive,
        counts: Counter[str],
        slice_tokens: int,
    ) -> None:
        self._model, self._config, self._archive = model, config, archive
        self._counts, self._slice = counts, slice_tokens

    def prepare(self, job: Job) -> Preparing:
        """Find or make the session that a request goes on from, and feed it what is new."""
        request, node, keys = job.request, job.base, job.keys
        done = 0 if node is None else keys.index(node.key) + 1
        session = None
        if self._archive.exists and done < len(keys):  # the store may know more of it than memory does
            finding = self._archive.find(keys[done:][::-1])
            yield finding
            found = finding.result()
            session = None if found is None else self._restored(found)
            if found is not None and session is not None:
                done = keys.index(found.key) + 1
                job.name, job.parent, job.grandparent = request.name or found.name, found.key, found.parent
                self._counts["restored"] += 1
        if session is None and node is not None:
            session = node.session.copy()
            job.name = request.name or (None if node.superseded else node.name)
            job.parent, job.grandparent = node.key, node.parent
            self._counts["hits"] += 1
        if session is None:
            session, done = yield from self._new_session(job.steps)
            job.name = request.name
            self._counts["made"] += 1
        else:
            job.cached_tokens = session.cache.logical_length
        job.session = session
        for step in job.steps[done:]:
            if isinstance(step, Budget):
                session.set_budget(step)
            elif not isinstance(step, Told):
                yield from session.extend([step], self._slice)
        job.name = request.session = job.name or uuid.uuid4().hex
        return session

    def prompt(self, job: Job) -> Preparing:
        """Feed a text that is no dialogue, all but its last token; none of it is compressed."""
        session = Dialogue.new(Compressor(self._model), Budget())
        job.session = session
        yield from session.feed(job.request.prompt[:-1], self._slice)
        return session

    def _restored(self, found: Found) -> Dialogue | None:
        """The session of a cache that was found; None if it is of no use."""
        try:
            return dialogue_of(self._model, found.header, found.tensors, found.key)
        except Exception as error:  # whatever it holds
            log.warning("a cache is made again: %s", error)
            return None

    def _new_session(self, steps: Sequence[Step]) -> Operation[tuple[Dialogue, int]]:
        """A session of the first steps, and how many those are: a budget, and a system prompt."""
        budget, first = steps[0], messages_of(steps)[0]
        assert isinstance(budget, Budget)
        system = first["content"] if first["role"] == "system" else None
        compressor = Compressor(self._model, self._config)
        session = Dialogue.new(compressor, budget, chat_template_kwargs=told(steps))
        yield from session.begin(system, self._slice)
        return session, steps.index(first) + (system is not None)
