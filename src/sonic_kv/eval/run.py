"""`sonic-kv eval`: methods × ratios × suites, recorded dialogue by dialogue."""

import hashlib
import os
import platform
import re
import signal
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any

import torch

from sonic_kv import __version__
from sonic_kv.compress.compressor import NO_NATS
from sonic_kv.compress.options import Budget, SessionConfig
from sonic_kv.errors import ConfigError, DataError
from sonic_kv.eval.judge import Endpoint, Verdicts, judge
from sonic_kv.eval.matching import exact_match
from sonic_kv.eval.methods import METHODS, Method
from sonic_kv.eval.options import EvalOptions
from sonic_kv.eval.progress import RunProgress, Standing
from sonic_kv.eval.replay import Opening, Outcome, Script, Task, make_script, open_dialogues, replay
from sonic_kv.eval.results import Key, Record, Results, key
from sonic_kv.eval.suites import SORTS, Question, Suite, load
from sonic_kv.model.model import SonicModel
from sonic_kv.text import nearest

CONTROLS = ("full", "none", "other-history")
Show = Callable[[Standing], None]


@dataclass(frozen=True)
class Cell:
    """A method under a budget."""

    name: str
    ratio: float | None = None
    max_damage: float | None = None

    @property
    def method(self) -> Method:
        return METHODS[self.name]

    @property
    def budget(self) -> Budget:
        return Budget(compression_ratio=self.ratio, max_damage=self.max_damage)

    @property
    def label(self) -> str:
        """What its records are called."""
        return self.name if self.max_damage is None else f"{self.name} at {self.max_damage:g} nats"


Batch = tuple[str, list[tuple[int, Cell]]]  # of a suite: a case's number, and what to do with it


def choose(model: SonicModel, options: EvalOptions) -> tuple[list[Cell], dict[str, str]]:
    """The cells to run, controls first, and what methods that cannot run here lack, by name.

    Raises:
        ConfigError: a method that was named does not exist, or cannot run here.
    """
    lacking: dict[str, str] = {}
    for name in options.methods or METHODS:
        if name not in METHODS:
            raise ConfigError(
                f"unknown method {name!r}{nearest(name, METHODS) or '.'} There are {', '.join(METHODS)}"
            )
        missing = METHODS[name].missing(model)
        if missing is not None:
            if options.methods:
                raise ConfigError(f"method {name} needs {missing}")
            lacking[name] = missing
    wanted = options.methods or [name for name, method in METHODS.items() if method.default]
    cells = []
    for name in dict.fromkeys((*CONTROLS, *wanted)):
        if name not in lacking:
            ratios: Sequence[float | None] = options.ratios if METHODS[name].budgeted else (None,)
            cells += [Cell(name, ratio) for ratio in ratios]
            if METHODS[name].in_nats:
                cells += [Cell(name, max_damage=damage) for damage in options.max_damages]
    scale = None if model.adapter is None else model.adapter.scale
    if options.max_damages and scale is None:
        raise ConfigError(NO_NATS)
    return cells, lacking


class Replays:
    """What is to be replayed, and how; it knows nothing of what has been done.

    Args:
        config: how sessions cut segments; the same for every method.

    Raises:
        ConfigError, DataError: the options, or a suite's file.
    """

    def __init__(self, model: SonicModel, options: EvalOptions, config: SessionConfig) -> None:
        self.model, self.options, self.config = model, options, config
        if config.positions != "original":
            raise ConfigError("eval compares at original positions: leave --positions out")
        self.cells, self.lacking = choose(model, options)
        self.paths = paths(options)
        limit, seed = options.limit, options.seed
        self.suites = {n: load(n, path, limit, seed, options.exchanges) for n, path in self.paths.items()}
        self.scripts = {name: self._scripts(suite) for name, suite in self.suites.items()}

    def _scripts(self, suite: Suite) -> list[Script]:
        """The suite's cases as tokens, those that fit."""
        limit, generate = self.options.max_tokens, self.options.generate
        made = (make_script(self.model, c, self.config, limit, generate) for c in suite.cases)
        scripts = [script for script in made if script is not None]
        if not scripts:
            raise DataError(
                f"suite {suite.name}: no dialogue has an exchange within {self.options.max_tokens} tokens: "
                "raise --max-tokens"
            )
        return scripts

    @property
    def only_named(self) -> list[str]:
        """Methods that are left out because nobody named them."""
        return [] if self.options.methods else [name for name, m in METHODS.items() if not m.default]

    def cells_of(self, name: str) -> list[Cell]:
        """What is to be done with each dialogue of a suite. A dialogue alone has no other to take the history of."""
        alone = len(self.scripts[name]) == 1
        return [cell for cell in self.cells if not (alone and cell.name == "other-history")]

    def batches(self, done: Container[Key] = ()) -> list[Batch]:
        """What is not `done` yet, in portions that are read side by side and share nothing with one another.

        Dialogues of like length are together, the longest first (what does not fit fails early). The first one is
        read alone: it measures how long the rest takes.
        """
        found, size = list[Batch](), self.options.batch_size
        for name, scripts in self.scripts.items():
            full = size  # a portion is of one suite
            for number, n in enumerate(sorted(range(len(scripts)), key=lambda n: -len(scripts[n].token_ids))):
                full = size if number == 1 else full
                todo = [(n, cell) for cell in self.cells_of(name) if _key(name, scripts[n], cell) not in done]
                for at in range(0, len(todo), size):
                    part = todo[at : at + size]
                    full += len(part)
                    if full > size:
                        found.append((name, []))
                        full = len(part)
                    found[-1][1].extend(part)
        return found

    def tokens(self, batch: Batch) -> int:
        """Tokens that the batch's rows read, written replies at their longest."""
        name, rows = batch
        longest = self._reply_tokens(name)
        return sum(
            len(self.scripts[name][n].token_ids) + longest * len(self.scripts[name][n].written)
            for n, _ in rows
        )

    def _reply_tokens(self, name: str) -> int:
        """The longest reply that is written in a suite."""
        return self.options.max_new_tokens or self.suites[name].answer_tokens

    def replay(self, batch: Batch) -> list[Record]:
        """The records of a portion, each row opened and read with all others of it."""
        name, rows = batch
        scripts, numbers = self.scripts[name], list(dict.fromkeys(n for n, _ in rows))
        others = [scripts[(n + 1) % len(scripts)] for n in numbers]
        opened = open_dialogues(
            self.model,
            [scripts[n] for n in numbers],
            [other.token_ids[other.prefix :] for other in others],
            [cell.method for _, cell in rows],
            self._reply_tokens(name),
        )
        openings = dict(zip(numbers, opened, strict=True))
        return self._replay(name, [(cell, openings[n]) for n, cell in rows])

    def _replay(self, name: str, rows: list[tuple[Cell, Opening]]) -> list[Record]:
        """Records of rows that are read side by side; if that fails, of one after the other."""
        found: Sequence[Outcome | Exception]
        try:
            tasks = [Task(cell.method, cell.budget, opening) for cell, opening in rows]
            found = replay(self.model, self.config, tasks)
        except Exception as error:  # whatever it is must not end the run
            if len(rows) > 1:
                return [made for row in rows for made in self._replay(name, [row])]
            found = [error]
        return [record(name, cell, o.script, f) for (cell, o), f in zip(rows, found, strict=True)]


class Evaluation:
    """A run: the work, and the folder where it is recorded.

    Raises:
        ConfigError, DataError: as `Replays`; or the folder holds another run.
    """

    def __init__(self, model: SonicModel, options: EvalOptions, config: SessionConfig | None = None) -> None:
        self.model, self.options, self.config = model, options, config or SessionConfig()
        self.work = work = Replays(model, options, self.config)
        self.results = Results(options.out)
        named = model.base.config.name_or_path
        self.results.open(
            {
                "version": __version__,
                "model": model.fingerprint(),
                "adapter": None if model.adapter is None else model.adapter.digest(),
                "session": asdict(self.config),
                "max_tokens": options.max_tokens,
                "generate": options.generate,
                "max_new_tokens": options.max_new_tokens if options.generate != "none" else None,
                "dtype": str(model.dtype),
            },
            {
                name: {"source": s.source, "sha256": _digest(work.paths[name])}
                for name, s in work.suites.items()
            },
            {
                "model": named,
                "options": asdict(options),
                "lacking": work.lacking,
                "only_named": work.only_named,
                "skipped": {name: len(s.cases) - len(work.scripts[name]) for name, s in work.suites.items()},
                "machine": {
                    "platform": platform.platform(),
                    "device": str(model.device),
                    "threads": torch.get_num_threads(),
                    "torch": torch.__version__,
                },
            },
        )
        self._done = {key(one) for one in self.results if one["status"] == "ok"}

    @property
    def total(self) -> int:
        """Records that the run has in the end."""
        return sum(
            len(self.work.cells_of(name)) * len(scripts) for name, scripts in self.work.scripts.items()
        )

    @property
    def done(self) -> int:
        """Records of this run that were there when it began."""
        cells = {(c.label, c.ratio) for c in self.work.cells}
        cases = {(name, s.case.id) for name, scripts in self.work.scripts.items() for s in scripts}
        return sum(k[:2] in cases and k[2:] in cells for k in self._done)

    def tokens_left(self) -> dict[str, int]:
        """Tokens that the rows of each suite are still to read."""
        tokens = dict.fromkeys(self.work.scripts, 0)
        for batch in self.work.batches(self._done):
            tokens[batch[0]] += self.work.tokens(batch)
        return tokens

    def run(
        self, show: Show = lambda standing: None, load_model: Callable[[], SonicModel] | None = None
    ) -> None:
        """Do what is not done yet; rows that are read side by side are recorded as soon as they are through.

        A method that fails on a dialogue is recorded as failed there, and the run goes on; the next run
        tries again. With `options.workers` processes of one thread, each hands in whole batches.

        Args:
            show: called after every batch, the first time with what the first dialogue has measured.
            load_model: gives a worker process the model; it is pickled.
        """
        batches = self.work.batches(self._done)
        progress = RunProgress(
            self.results.folder / "progress.json", self.tokens_left(), self.done, self.total
        )
        for batch, records in self._replayed(batches, load_model):
            self.results.append(records)
            show(progress.add(batch[0], self.work.tokens(batch), len(records)))

    def _replayed(
        self, batches: Sequence[Batch], load_model: Callable[[], SonicModel] | None
    ) -> Iterator[tuple[Batch, list[Record]]]:
        """The records of each batch, as they come."""
        if self.options.workers == 1 or load_model is None:
            yield from ((batch, self.work.replay(batch)) for batch in batches)
            return
        start, setup = get_context("spawn"), (load_model, self.options, self.config)
        with ProcessPoolExecutor(self.options.workers, start, _begin, setup) as pool:
            jobs = {pool.submit(_do, batch): batch for batch in batches}
            try:
                for job in as_completed(jobs):
                    yield jobs[job], job.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def judge(self, progress: Callable[[str, int, int], None] = lambda doing, done, total: None) -> None:
        """Have written replies scored that are not yet; keeps what there is if the judge stops answering.

        Raises:
            JudgeError: the judge does not answer.
        """
        suites, verdicts = list(self.work.suites.values()), Verdicts(self.results.folder)
        judge(Endpoint.of(self.options), suites, self.results, verdicts, progress)


_work: Replays | None = None  # of a worker process


def _begin(load_model: Callable[[], SonicModel], options: EvalOptions, config: SessionConfig) -> None:
    """What a worker process does first."""
    global _work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
    end_with_parent()
    torch.set_num_threads(1)
    _work = Replays(load_model(), options, config)


def end_with_parent() -> None:
    """End this worker as soon as its parent is gone, however that ended: nobody would take the records."""
    parent = parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    Thread(target=wait, daemon=True).start()


def _do(batch: Batch) -> list[Record]:
    """`Replays.replay`, in a worker process."""
    assert _work is not None
    return _work.replay(batch)


def paths(options: EvalOptions) -> dict[str, str | None]:
    """The suites to run and their files; None: the suite needs none, or its file has not been given.

    A file without a known name goes to the only named suite that lacks one, or holds dialogues in this project's own
    form, in a suite called as the file.
    """
    found: dict[str, str | None] = dict.fromkeys(options.suites)
    lacking = [name for name in found if name in SORTS and SORTS[name].case_of is not None]
    for entry in options.data:
        name, equals, path = entry.partition("=")
        if not equals or "/" in name:
            own = re.sub(r"(\.(jsonl?|parquet))?(\.gz)?$", "", Path(entry).name)
            name, path = lacking[0] if len(lacking) == 1 else own, entry
        elif name not in SORTS:
            raise ConfigError(f"--data {entry}: write NAME=PATH with a suite's name{nearest(name, SORTS)}")
        found[name] = os.path.expandvars(Path(path).expanduser())
    return found or {"synthetic": None}


def _digest(path: str | None) -> str | None:
    return None if path is None else hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]


def _key(suite: str, script: Script, cell: Cell) -> Key:
    return suite, script.case.id, cell.label, cell.ratio


def _head(suite: str, script: Script, cell: Cell) -> Record:
    case = script.case
    return {
        "suite": suite,
        "case": case.id,
        "group": case.group,
        "method": cell.label,
        "ratio": cell.ratio,
    }


def _written(question: Question, texts: Mapping[int, str]) -> dict[str, bool]:
    if question.message not in texts or not question.checked:
        return {}
    return {"exact": exact_match(texts[question.message], question.answer, number=question.number)}


def _replies(script: Script, texts: Mapping[int, str]) -> dict[str, Any]:
    """The written replies, and which of them a judge may score."""
    if not texts:
        return {}
    replies = {str(message): text for message, text in texts.items()}
    return {"replies": replies, "judged": [str(i) for i in script.case.judged if i in texts]}


def record(suite: str, cell: Cell, script: Script, found: Outcome | Exception) -> Record:
    """What is kept of an outcome: sums per reply, the questions, what was held; or why there is none."""
    if isinstance(found, Exception):
        reason = f"{type(found).__name__}: {found}".splitlines()[0]
        return {**_head(suite, script, cell), "status": "failed", "error": reason}
    place = {position: i for i, position in enumerate(script.scored)}
    turns = []
    for number, reply in enumerate(script.replies):
        if reply.start == reply.stop:
            continue
        span = slice(place[reply.start], place[reply.stop - 1] + 1)
        turns.append(
            {
                "turn": number + 1,
                "closed": sum(end <= reply.start for end in script.ends),
                "tokens": reply.stop - reply.start,
                "nll": round(sum(found.nll[span]), 5),
                "kl": round(sum(found.kl[span]), 5),
                "agree": sum(found.agree[span]),
                "right": sum(found.right[span]),
            }
        )
    questions = [
        {
            "message": question.message,
            "kind": question.kind,
            "distance": question.distance,
            "closed": sum(end <= at[0] for end in script.ends),
            "right": all(found.right[place[i]] for i in at),
            **_written(question, found.texts),
            "nll": round(sum(found.nll[place[i]] for i in at), 5),
        }
        for question, at in script.questions
        if at
    ]
    return {
        **_head(suite, script, cell),
        "status": "ok",
        "tokens": len(script.token_ids),
        "history": script.ends[len(found.memory) - 1] - script.prefix if found.memory else 0,
        "memory": [round(n, 3) for n in found.memory],
        **({} if None in found.damage else {"damage": [float(f"{nats:.5g}") for nats in found.damage]}),
        "turns": turns,
        "questions": questions,
        **_replies(script, found.texts),
        "seconds": round(found.seconds, 4),
    }
