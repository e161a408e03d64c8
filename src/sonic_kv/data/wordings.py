"""The wordings and word lists of the synthetic dialogues, read from the TOML files in `words/` on first use."""

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, get_args

from sonic_kv.errors import DataError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).parent / "words"
SPLITS = ("train", "validation", "test")
Lines = tuple[str, ...]
BySplit = Mapping[str, Lines]
Part = TypeVar("Part")
_MARK = re.compile(r"{(\w*)}")
_MARKS = {"S", "S_obj", "P", "he", "his", "K", "V", "aV", "A", "N", "W", "obj"}
_MARKS |= {"noun", "where", "time", "meal", "thing", "sight", "plant", "place", "topic"}  # of chatter


def lines(block: str) -> Lines:
    """The lines of a block."""
    return tuple(filter(None, map(str.strip, block.splitlines())))


def by_split(block: str) -> BySplit:
    """The wordings of a block by split: `~ validation` and `~ test` start those kept for these splits."""
    found: dict[str, list[str]] = {split: [] for split in SPLITS}
    split = "train"
    for line in lines(block):
        if line.startswith("~"):
            split = line[1:].strip()
        else:
            found[split].append(line)
    return {split: tuple(wordings) for split, wordings in found.items()}


def words(value: str | Sequence[str]) -> Lines:
    """The words of a text, or the parts of a list."""
    return tuple(value.split() if isinstance(value, str) else value)


def variants(wording: str) -> set[Lines]:
    """The words of a wording, and what is left of them without any one: two near wordings share a variant."""
    found = tuple(re.findall(r"[^\s.,:;?!]+", wording.lower()))
    return {found, *(found[:i] + found[i + 1 :] for i in range(len(found)))}


@dataclass(frozen=True)
class Frames:
    """What training wordings are put together from; see `words/frames.toml`."""

    statement: Lines
    update: Lines
    question: Lines
    asking: Lines
    clause: Lines
    update_clause: Lines
    topic: Lines
    statement_tails: Lines
    question_tails: Lines
    fillers: Lines


@dataclass(frozen=True)
class Sentences:
    """What is said beside the facts; see `words/sentences.toml`."""

    lead_ins: BySplit
    question_lead_ins: BySplit
    acknowledgements: Lines
    person_acknowledgements: Lines
    update_acknowledgements: Lines
    system_prompts: BySplit
    count_statements: BySplit
    count_more: BySplit
    count_less: BySplit
    count_questions: BySplit
    count_answers: Lines
    instruction_acknowledgements: Lines
    secrecy: BySplit
    refusals: Lines
    chatter: BySplit
    instructions: Mapping[str, BySplit]


@dataclass(frozen=True)
class Things:
    """What things of one sort are called: nouns, and forms with {noun} and {where}."""

    nouns: Lines
    forms: Lines


@dataclass(frozen=True)
class Vocabulary:
    """Word lists; see `words/words.toml`."""

    relations_female: Lines
    relations_male: Lines
    relations: Lines
    female_names: Lines
    male_names: Lines
    cities: Lines
    jobs: Lines
    foods: Lines
    colours: Lines
    instruments: Lines
    sports: Lines
    languages: Lines
    rooms: Lines
    counted: Lines
    thing_words: Lines
    containers: Lines
    spot_words: Lines
    months: Lines
    venue_kinds: Lines
    company_kinds: Lines
    onsets: Lines
    vowels: Lines
    codas: Lines
    city_endings: Lines
    scripts: tuple[Lines, ...]
    chatter_words: Mapping[str, Lines]
    contractions: Mapping[str, str]
    things: Mapping[str, Things]


@dataclass(frozen=True)
class Attribute:
    """Something a dialogue can state, change and ask: wordings by split, and the pool of its values.

    Attributes:
        subject: what it is said of: a person, or a thing of the named sort.
        composed: by sort of sentence, pairs of frames and of what takes the place of their {N}: training wordings
            are made of any two.
        held_out: the `variants` of every wording of the other splits.
    """

    name: str
    subject: str
    values: str
    training_only: bool
    statements: BySplit
    updates: BySplit
    questions: BySplit
    answers: Lines
    details: Lines
    composed: Mapping[str, tuple[tuple[Lines, Lines], ...]]
    held_out: frozenset[Lines]

    def wordings(self, sort: str) -> BySplit:
        """The written wordings by split: of "statement", "update" or "question"."""
        return {"statement": self.statements, "update": self.updates, "question": self.questions}[sort]

    def is_apart(self, wording: str) -> bool:
        """True if more than one word, left out, put in, replaced or moved, parts it from the held-out wordings."""
        return self.held_out.isdisjoint(variants(wording))


@cache
def frames() -> Frames:
    """The frames of training wordings."""
    return _build(Frames, _read("frames"), {Lines: lines})


@cache
def sentences() -> Sentences:
    """What is said beside the facts."""
    return _build(Sentences, _read("sentences"), {Lines: lines, BySplit: by_split})


@cache
def vocabulary() -> Vocabulary:
    """Word lists."""
    return _build(Vocabulary, _read("words"), {Lines: words})


@cache
def attributes(split: str) -> tuple[Attribute, ...]:
    """The attributes of a split's dialogues."""
    return tuple(one for one in _all_attributes() if split == "train" or not one.training_only)


@cache
def _all_attributes() -> tuple[Attribute, ...]:
    return tuple(_attribute(**one) for one in _read("attributes")["attribute"])


def _attribute(
    name: str,
    subject: str,
    values: str,
    statements: str,
    names: str,
    clauses: str,
    questions: str,
    answers: str,
    updates: str = "",
    details: str = "",
    named: str = "{V}",
    training_only: bool = False,
) -> Attribute:
    """An `Attribute` from its blocks. `named` is how the value follows a name."""
    frame, nouns = frames(), lines(names)
    stated, updated, asked = by_split(statements), by_split(updates), by_split(questions)
    said = tuple(wording[:-1] for wording in stated["train"] if "?" not in wording)

    def of_nouns(found: Lines) -> Lines:
        return tuple(one.replace("{V}", named) for one in found)

    composed = {
        "statement": ((of_nouns(frame.statement), nouns), (frame.clause, said)),
        "update": ((of_nouns(frame.update), nouns), (frame.update_clause, said)),
        "question": ((frame.question, nouns), (frame.asking, (*nouns, *lines(clauses)))),
    }
    written = (block[split] for block in (stated, updated, asked) for split in SPLITS[1:])
    held_out = frozenset(v for wordings in written for wording in wordings for v in variants(wording))
    return Attribute(
        name, subject, values, training_only, stated, updated, asked, lines(answers), words(details), composed,
        held_out,
    )  # fmt: skip


def _read(name: str) -> dict[str, Any]:
    """One file, its placeholders checked.

    Raises:
        DataError: it is damaged, or holds an unknown placeholder.
    """
    path = FOLDER / f"{name}.toml"
    try:
        text = path.read_text(encoding="utf-8")
        unknown = set(_MARK.findall(text)) - _MARKS
        if unknown:
            raise ValueError(f"unknown placeholder {{{min(unknown)}}}")
        return tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: {error}") from error


def _build(cls: type[Part], found: Mapping[str, Any], readers: Mapping[Any, Callable[[Any], Any]]) -> Part:
    """A `cls` from the blocks of a file, each read as the type of its field says."""
    hints = {field.name: field.type for field in fields(cls)}  # type: ignore[arg-type]
    if hints.keys() != found.keys():
        raise DataError(f"{FOLDER}: {', '.join(sorted(hints.keys() ^ found.keys()))} is missing or unknown")

    def read(value: Any, hint: Any) -> Any:
        if hint in readers:
            return readers[hint](value)
        if hint is Things:
            return _build(Things, value, readers)
        if isinstance(value, dict):
            return {key: read(part, get_args(hint)[1]) for key, part in value.items()}
        return tuple(read(part, get_args(hint)[0]) for part in value) if isinstance(value, list) else value

    return cls(**{name: read(value, hints[name]) for name, value in found.items()})
