"""Synthetic dialogues whose later questions depend on earlier facts. Seeded; pure Python.

A dialogue is a sequence of exchanges of three sorts: the user states or changes something and the
assistant acknowledges it without repeating it; the user chats; the user asks for something stated some
exchanges before. Several people and things share attributes, so a question needs both the subject and
the attribute. The splits share no wording and no entity: entities belong to a split by `split_of`.

Kinds of question:

    fact         about a person or an item
    code         digits, passwords, times, dates
    update       the fact was changed; the newest counts
    coreference  the fact was stated of "she" or "he"
    arithmetic   a running count after one or more changes; its answer stands nowhere in the dialogue
    instruction  a word that every reply since an instruction must hold (asked of no one: the reply is checked)
    refusal      a code that the user later declared secret; the answer is `wordings.REFUSAL`

How often each occurs is set by the shares of `SynthConfig`.

The `validation` and `test` splits are those of version 2, to the letter: published figures rest on them.
Version 3 is a richer training split. Its wordings are put together from far more parts; two facts, or a fact
and a question, or either and chatter share a message; the user says more of themself; people are known by
relation only ("my brother"); plain words stand in for values and nouns of every sort.
"""

import hashlib
import itertools
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from sonic_kv.data import wordings as w
from sonic_kv.data.options import SynthConfig

VERSION = 3
HELD_OUT_VERSION = 2  # of the validation and test splits
TRAINING_ATTRIBUTES = (*w.ATTRIBUTES, *w.TRAINING_ATTRIBUTES)
CODE_ATTRIBUTES = ("code", "password", "time", "birthday")

_FORM = re.compile(r"<([^/<>]*)/([^/<>]*)>")
_LONG = re.compile(rf"\b({'|'.join(w.CONTRACTIONS)})\b", re.IGNORECASE)
_SMALL = re.compile(r"\b(What|Where|Who|When|How|Which|My|The|It|Our|We|Do|Can|Please|Tell|In|By|For)\b")
_CHOICE = re.compile(r"\(([^()]*)\)")


def split_of(entity: str) -> str:
    """The split an entity belongs to, by hash: 76 % train, 8 % validation, 16 % test."""
    bucket = hashlib.blake2b(entity.lower().encode(), digest_size=2).digest()
    share = int.from_bytes(bucket, "big") / 65536
    return "train" if share < 0.76 else "validation" if share < 0.84 else "test"


_LISTS = {
    "female_names": w.FEMALE_NAMES,
    "male_names": w.MALE_NAMES,
    "cities": w.CITIES,
    "jobs": w.JOBS,
    "foods": w.FOODS,
    "colours": w.COLOURS,
    "instruments": w.INSTRUMENTS,
    "sports": w.SPORTS,
    "languages": w.LANGUAGES,
    "rooms": w.ROOMS,
    "counted": w.COUNTED,
}

_CAPITALISED = ("female_names", "male_names", "places", "languages")


@lru_cache
def entities(pool: str, split: str) -> tuple[str, ...]:
    """The listed entities of a split. Pools that are composed at random have no list, see `split_of`."""
    return tuple(sorted({word for word in _LISTS[pool] if split_of(word) == split}))


def expanded(wording: str) -> Iterator[str]:
    """A wording with every choice of its alternatives "(a|b)"."""
    *texts, last = _CHOICE.split(wording)
    choices = [text.split("|") for text in texts[1::2]]
    for chosen in itertools.product(*choices):
        yield "".join(map("".join, zip(texts[::2], chosen, strict=True))) + last


@lru_cache
def templates(split: str) -> frozenset[str]:
    """Every wording of a split, as `attribute.sort: wording`; of training those written or made of names.

    The others are drawn on top: frames round written statements, topics, tails, noise.
    """
    if split != "train":
        return frozenset(
            f"{attribute.name}.{sort}: {wording}"
            for attribute in w.ATTRIBUTES
            for sort in attribute.composed
            for wording in attribute.wordings(sort)[split]
        )
    found = set()
    for attribute in TRAINING_ATTRIBUTES:
        for sort, pairs in attribute.composed.items():
            written = attribute.wordings(sort)["train"]
            made = [
                frame.replace("{N}", part)
                for frames, parts in pairs
                if frames not in (w.CLAUSE_FRAMES, w.UPDATE_CLAUSE_FRAMES)
                for frame in frames
                for part in parts
            ]
            texts = [text for wording in (*written, *made) for text in expanded(wording)]
            found |= {
                f"{attribute.name}.{sort}: {text}"
                for text in texts
                if text in written or attribute.is_apart(text)
            }
    return frozenset(found)


def pools(split: str) -> dict[str, frozenset[str]]:
    """What a split draws from: its wordings and every listed entity pool, by name."""
    listed = {name: frozenset(entities(name, split)) for name in _LISTS}
    return {"templates": templates(split), **listed}


def _word(rng: random.Random, syllables: int, words: tuple[str, ...] = ()) -> str:
    """An invented word, or one of `words` if there are any."""
    if words and rng.random() < 0.3:
        return rng.choice(words)
    parts = [rng.choice(w.ONSETS) + rng.choice(w.VOWELS) for _ in range(syllables)]
    return "".join(parts) + rng.choice(w.CODAS)


def _foreign_word(rng: random.Random) -> str:
    """A name in another script than the Latin one."""
    first, middle, last = rng.choice(w.SCRIPTS)
    return rng.choice(first) + rng.choice(middle) + rng.choice(("", rng.choice(last)))


def _draw(rng: random.Random, pool: str, script_share: float, words: tuple[str, ...]) -> str:
    """A random value of a composed pool, of any split; `words` may be part of it."""
    if pool == "codes":
        digits = "".join(rng.choices("0123456789", k=rng.choice((3, 4, 4, 4, 5, 6))))
        return (
            rng.choice("ABCDEFGHKLMNPRSTVWX") + rng.choice("ACEHKLMRTX") + digits
            if rng.random() < 0.2
            else digits
        )
    if pool == "times":
        return f"{rng.randrange(6, 24)}:{rng.randrange(0, 60):02d}"
    if pool == "ages":
        return f"{rng.randrange(2, 100)} years"
    if pool == "dates":
        return f"{rng.randrange(1, 29)} {rng.choice(w.MONTHS)}"
    if pool == "passwords":
        sort = rng.random()
        if sort < 0.4:
            return _word(rng, rng.choice((2, 3)), words)
        if sort < 0.6:
            return _word(rng, 2, words) + str(rng.randrange(10, 1000))
        return f"{rng.choice(w.SPOT_WORDS)} {rng.choice(w.THING_WORDS)}"
    if pool == "spots":
        return f"the {rng.choice(w.SPOT_WORDS)} {rng.choice(w.CONTAINERS)}"
    if pool == "titles":
        if rng.random() < 0.5:
            return _word(rng, rng.choice((2, 3)), words).capitalize()
        return f"{rng.choice(w.SPOT_WORDS)} {rng.choice(w.THING_WORDS)}".title()
    if pool == "venues":
        return f"{rng.choice(w.VENUE_KINDS)} {_word(rng, rng.choice((1, 2)), words).capitalize()}"
    if pool == "companies":
        name = _word(rng, 2, words).capitalize()
        return f"{name} {rng.choice(w.COMPANY_KINDS)}" if rng.random() < 0.4 else name
    if pool == "places":
        return (_word(rng, rng.choice((1, 2)), words) + rng.choice(w.CITY_ENDINGS)).capitalize()
    if pool in ("pet_names", "names"):
        if rng.random() < script_share:
            return _foreign_word(rng)
        return _word(rng, rng.choice((1, 2, 2)), words).capitalize()
    raise KeyError(pool)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _casual(text: str) -> str:
    """A message as typed in a hurry: contracted, without the mark at its end or a capital that no name needs."""
    text = _LONG.sub(lambda m: (_capital if m[0][0].isupper() else str)(w.CONTRACTIONS[m[0].lower()]), text)
    return _SMALL.sub(lambda m: m[0].lower(), text).rstrip(".?")


def _composed(rng: random.Random, pool: str, split: str, script_share: float, words: tuple[str, ...]) -> str:
    """A random value of a composed pool that belongs to `split`."""
    while True:
        value = _draw(rng, pool, script_share, words)
        if split_of(_gold(value)) == split and (len(value) > 2 or not value.isascii()):
            return value


def _gold(value: str) -> str:
    """What a reply must contain to be right: the value without its article."""
    return value.removeprefix("the ")


@lru_cache
def _of_split(words: tuple[str, ...], split: str) -> tuple[str, ...]:
    return tuple(word for word in words if split_of(word) == split)


def _value(rng: random.Random, pool: str, config: SynthConfig, words: tuple[str, ...]) -> str:
    """A value of a pool; where the pool is listed, more often one of `words` if there are any.

    In training they are part of many composed values too: only what is copied in training is copied later.
    """
    open_ended = pool == "places" or (pool in _LISTS and pool != "counted")
    train = config.split == "train"
    if words and open_ended and rng.random() < (0.75 if train else 0.6):
        word = rng.choice(words)
        return word.capitalize() if pool in _CAPITALISED else word
    if pool == "places" and rng.random() < 0.4:
        return rng.choice(entities("cities", config.split))
    if pool in _LISTS:
        return rng.choice(entities(pool, config.split))
    return _composed(rng, pool, config.split, config.script_share, words if train else ())


@dataclass(eq=False)
class _Subject:
    """A person or a thing of the dialogue. `forms` are the ways to name it, the fullest first."""

    forms: tuple[str, ...]
    noun: str = ""
    pronoun: tuple[str, str, str] = ("it", "its", "it")
    myself: bool = False
    introduced: bool = False


@dataclass(eq=False)
class _Fact:
    attribute: w.Attribute
    subject: _Subject
    detail: str
    value: str
    form: str  # how the statement named the subject
    kind: str
    exchange: int
    message: int
    asked: bool = False
    secret: bool = False


@dataclass(eq=False)
class _Count:
    """A running count of `noun`. `exchange` and `message` are those of its newest change, if any."""

    noun: str
    total: int
    exchange: int
    message: int
    changed: bool = False


@dataclass
class _Instruction:
    """What every reply must hold from now on, and where: "begin", "end" or "address"."""

    sort: str
    word: str
    exchange: int
    message: int


@dataclass
class _Dialogue:
    rng: random.Random
    config: SynthConfig
    words: tuple[str, ...]
    messages: list[dict[str, str]] = field(default_factory=list)
    questions: list[dict[str, Any]] = field(default_factory=list)
    facts: list[_Fact] = field(default_factory=list)
    people: list[_Subject] = field(default_factory=list)
    things: dict[str, list[_Subject]] = field(default_factory=dict)
    counts: list[_Count] = field(default_factory=list)
    instruction: _Instruction | None = None
    used: set[str] = field(default_factory=set)  # names and values: none stands for two things
    myself: _Subject = field(default_factory=lambda: _Subject(("I",), pronoun=("I", "my", "me"), myself=True))

    def say(self, user: str, assistant: str) -> None:
        if self.chance(self.config.casual_share):
            user = _casual(user)
        self.messages.append({"role": "user", "content": user})
        self.messages.append({"role": "assistant", "content": self.obedient(assistant)})

    def obedient(self, reply: str) -> str:
        """The reply as a standing instruction wants it."""
        if self.instruction is None:
            return reply
        word = self.instruction.word
        if self.instruction.sort == "begin":
            return f"{word[:1].upper()}{word[1:]}! {reply}"
        if self.instruction.sort == "end":
            return f"{reply} {word[:1].upper()}{word[1:]}!"
        return f"{reply[:-1]}, {word}{reply[-1]}"

    def check(self, answer: str, evidence: int, distance: int, kind: str, attribute: str) -> None:
        """Record that the newest reply must hold `answer`."""
        self.questions.append(
            {
                "message": len(self.messages) - 1,
                "answer": answer,
                "evidence": evidence,
                "distance": distance,
                "kind": kind,
                "attribute": attribute,
            }
        )

    def chance(self, share: float) -> bool:
        """Whether something that only training dialogues have happens now."""
        return self.config.split == "train" and self.rng.random() < share

    def pick(self, wordings: dict[str, tuple[str, ...]]) -> str:
        """A wording of this dialogue's split."""
        return self.chosen(self.rng.choice(wordings[self.config.split]))

    def chosen(self, wording: str) -> str:
        """A wording with one of each of its alternatives "(a|b)"."""
        return _CHOICE.sub(lambda m: self.rng.choice(m[1].split("|")), wording)

    def fresh(self, pool: str) -> str | None:
        """A value no other fact of this dialogue has; none if the pool seems to be used up."""
        for _ in range(20):
            value = _value(self.rng, pool, self.config, self.words)
            if value.lower() not in self.used:
                self.used.add(value.lower())
                return value
        return None

    def new_person(self) -> _Subject | None:
        rng, taken = self.rng, {person.noun for person in self.people}
        female = rng.random() < 0.5
        own = w.RELATIONS_FEMALE if female else w.RELATIONS_MALE
        free = [r for r in (own if rng.random() < 0.6 else w.RELATIONS) if r not in taken]
        if not free:
            return None
        relation = rng.choice(free)
        pronoun = ("she", "her", "her") if female else ("he", "his", "him")
        if self.chance(self.config.unnamed_share):
            return _Subject((f"my {relation}",), relation, pronoun)
        pool = rng.choice(("female_names" if female else "male_names", "names"))
        name = self.fresh(pool)
        if name is None:
            return None
        return _Subject((f"my {relation} {name}", name, f"my {relation}"), relation, pronoun)

    def person(self) -> _Subject:
        rng = self.rng
        if rng.random() < (self.config.self_share if self.config.split == "train" else 0.15):
            return self.myself
        if len(self.people) < 6 and (not self.people or rng.random() < 0.55):
            person = self.new_person()
            if person:
                self.people.append(person)
                return person
        return rng.choice(self.people) if self.people else self.myself

    def relation(self) -> _Subject:
        """Someone whose name can be stated: the user, or a person known by relation only."""
        unnamed = [person for person in self.people if len(person.forms) == 1]
        return self.rng.choice((self.myself, self.rng.choice(unnamed) if unnamed else self.myself))

    def thing(self, sort: str) -> _Subject | None:
        """A new thing: its noun may be that of another, its full name never is."""
        rng, (nouns, patterns) = self.rng, w.THINGS[sort]
        known = self.things.setdefault(sort, [])
        where = ""
        if "{where}" in patterns[0]:
            noun = rng.choice(known).noun if known and rng.random() < 0.5 else rng.choice(nouns)
            where = _value(rng, "rooms", self.config, self.words)
        else:
            noun = rng.choice(nouns)
            if self.words and self.chance(0.2):
                noun = rng.choice(self.words)
                if noun in self.used:
                    return None
                self.used.add(noun)
        forms = tuple(p.format(noun=noun, where=where) for p in patterns)
        if not where:
            forms = (rng.choice(forms),)  # "the key" and "my key" might be two keys
            if any(noun == other.noun for group in self.things.values() for other in group):
                return None
        if any(forms[0] == other.forms[0] for other in known):
            return None
        subject = _Subject(forms, noun)
        known.append(subject)
        return subject

    def names(self, fact: _Fact, form: str) -> bool:
        """Whether `form` names a person other than the user."""
        return fact.subject in self.people and form in fact.subject.forms

    def wording(self, attribute: w.Attribute, sort: str, topic: bool = False) -> str:
        """A wording of this dialogue's split; a training one may be composed, topicalised and noisy.

        A small model that only ever meets well-formed wordings learns them by heart; with words missing
        and others put in it has to go by those that matter.

        Args:
            topic: the sentence names a person, and may name it before all else; a thing always may.
        """
        rng, split = self.rng, self.config.split
        if split != "train":
            return rng.choice(attribute.wordings(sort)[split])
        found = self.composed(attribute, sort)
        if rng.random() < 0.15:
            if topic and "{S_obj}" not in found:
                rest = found.replace("{S}", "{he}").replace("{P}", "{his}")
                found = rng.choice(w.TOPIC_FRAMES).replace("{W}", rest)
            elif found.count("{K}") == 1:
                frame = rng.choice(w.TOPIC_FRAMES).replace("{S}", "{K}")
                found = frame.replace("{W}", found.replace("{K}", "it"))
        if rng.random() < 0.15:
            found = found[:-1] + rng.choice(w.QUESTION_TAILS if sort == "question" else w.STATEMENT_TAILS)
        found = self.chosen(found)
        return self.noisy(found) if rng.random() < self.config.noise_share else found

    def composed(self, attribute: w.Attribute, sort: str) -> str:
        """A training wording: a written one, or one put together that is not near to any held-out one."""
        rng, written = self.rng, attribute.wordings(sort)["train"]
        while True:
            if rng.random() < 0.5:
                found = self.chosen(rng.choice(written))
                if found in written:
                    return found
            else:
                frames, parts = rng.choice(attribute.composed[sort])
                found = self.chosen(rng.choice(frames).replace("{N}", rng.choice(parts)))
            if attribute.is_apart(found):
                return found

    def noisy(self, wording: str) -> str:
        """A wording with some of its plain words left out or replaced, and fillers put in."""
        rng = self.rng
        *words, last = wording.split(" ")
        kept = []
        for word in words:
            if rng.random() < 0.08:
                kept.append(rng.choice(w.FILLERS))
            if word.isalpha() and self.words and rng.random() < 0.08:
                kept.append(rng.choice(self.words))
            elif not word.isalpha() or rng.random() > 0.15:
                kept.append(word)
        return " ".join((*kept, last))

    def sentence(self, wording: str, fact: _Fact, form: str, *, reply: bool = False) -> str:
        """A wording with the fact's words filled in; `form` names the subject."""
        subject = fact.subject
        he, his, him = ("you", "your", "you") if reply and subject.myself else subject.pronoun
        if subject.myself or form == he:
            possessor, object_form = his, him
        else:
            possessor, object_form = form + "'s", form
        known_form = re.sub(r"^(my|our) ", "your ", form) if reply else form
        article = "an" if fact.value[:1].lower() in "aeiou" else "a"
        text = _FORM.sub(lambda m: m[2] if subject.myself else m[1], wording)
        filled = {
            "{S}": form,
            "{S_obj}": object_form,
            "{P}": possessor,
            "{he}": he,
            "{his}": his,
            "{K}": known_form,
            "{aV}": f"{article} {fact.value}",
            "{V}": fact.value,
            "{A}": fact.detail,
        }
        for mark, words in filled.items():
            text = text.replace(mark, words)
        return text

    def led(self, text: str, lead_ins: dict[str, tuple[str, ...]], share: float) -> str:
        """The sentence with a lead-in before it, sometimes."""
        return f"{self.pick(lead_ins)} {text}" if self.rng.random() < share else text

    def opened(self, text: str, lead_ins: dict[str, tuple[str, ...]], share: float) -> str:
        """The same, capitalised."""
        return _capital(self.led(text, lead_ins, share))

    def new_fact(self, exchange: int, subject: _Subject | None = None) -> _Fact | None:
        """A fact not yet stated; of `subject`, or of anyone or anything."""
        rng = self.rng
        attributes = TRAINING_ATTRIBUTES if self.config.split == "train" else w.ATTRIBUTES
        attribute = rng.choice(attributes)
        if self.facts and rng.random() < 0.4:
            attribute = rng.choice(self.facts).attribute  # a distractor: the same attribute of another
        if subject is not None:
            attribute = rng.choice([a for a in attributes if a.subject == "person"])
        elif attribute.subject == "person":
            subject = self.person()
        elif attribute.subject == "relation":
            subject = self.relation()
        else:
            subject = self.thing(attribute.subject)
        if subject is None:
            return None
        detail = rng.choice(attribute.details) if attribute.details else ""
        if any((f.attribute, f.subject) == (attribute, subject) for f in self.facts):
            return None
        kind = "code" if attribute.name in CODE_ATTRIBUTES else "fact"
        pool = attribute.values
        if attribute.subject == "relation" and rng.random() < 0.5:  # a listed name, not an invented one
            pool = {"she": "female_names", "he": "male_names"}.get(
                subject.pronoun[0], rng.choice(("female_names", "male_names"))
            )
        value = self.fresh(pool)
        if value is None:
            return None
        return _Fact(attribute, subject, detail, value, "", kind, exchange, len(self.messages))

    def statement_form(self, subject: _Subject) -> str:
        """How a statement names its subject: in full the first time."""
        if len(subject.forms) < 3 or "my" not in subject.forms[0] or not subject.introduced:
            subject.introduced = True
            return (
                subject.forms[0]
                if subject in self.people or subject.myself
                else self.rng.choice(subject.forms)
            )
        return self.rng.choices(subject.forms, (4, 2, 1))[0]

    def add_fact(self, exchange: int) -> bool:
        """An exchange that states one or two facts, or changes one."""
        rng, split = self.rng, self.config.split
        if rng.random() < self.config.count_share:
            return self.count(exchange)
        told = [f for f in self.facts if f.kind == "code" and not f.secret and f.exchange < exchange]
        told = [f for f in told if f.attribute.subject in ("access", "account")]
        if told and rng.random() < self.config.secret_share:
            self.keep_secret(rng.choice(told), exchange)
            return True
        changeable = [
            f for f in self.facts if f.attribute.updates[split] and f.exchange < exchange and not f.secret
        ]
        if changeable and rng.random() < self.config.update_share:
            return self.update(rng.choice(changeable), exchange)
        text, fact = self.state(exchange)
        if fact is None:
            return False
        if self.chance(self.config.pair_share):
            text = self.joined(text, self.state(exchange)[0])
        person = fact.attribute.subject == "person"
        replies: tuple[str, ...] = w.ACKNOWLEDGEMENTS
        if person and rng.random() < 0.3:
            replies = w.PERSON_ACKNOWLEDGEMENTS
        him = "you" if fact.subject.myself else fact.subject.pronoun[2]
        self.say_aside(_capital(text), rng.choice(replies).format(obj=him))
        return True

    def state(self, exchange: int) -> tuple[str, _Fact | None]:
        """The statement of a new fact, sometimes of two of one person, in lower case, and the fact if any."""
        rng = self.rng
        fact = self.new_fact(exchange)
        if fact is None:
            return "", None
        fact.form = self.statement_form(fact.subject)
        text = self.sentence(
            self.wording(fact.attribute, "statement", self.names(fact, fact.form)), fact, fact.form
        )
        text = self.led(text, w.LEAD_INS, 0.3)
        self.facts.append(fact)
        person = fact.attribute.subject == "person"
        if person and rng.random() < self.config.coreference_share:
            second = self.new_fact(exchange, fact.subject)
            if second is not None:
                second.form = fact.form
                if not fact.subject.myself:
                    second.kind = "coreference"
                more = self.sentence(
                    self.wording(second.attribute, "statement"), second, second.subject.pronoun[0]
                )
                text += f" {_capital(more)}"
                self.facts.append(second)
        return text, fact

    def joined(self, text: str, more: str) -> str:
        """Two statements of a message, if there are two; often as one sentence."""
        if more and text.endswith(".") and self.rng.random() < 0.5:
            return text[:-1] + self.rng.choice((" and ", ", and ", "; ")) + more
        return f"{text} {_capital(more)}".strip()

    def say_aside(self, user: str, assistant: str, answer: str = "") -> None:
        """An exchange; in training sometimes with chatter beside it that does not give the answer away."""
        if self.chance(self.config.aside_share):
            chatter, reply = self.chatter(1)
            if not answer or answer.lower() not in chatter.lower():
                user = f"{user} {chatter}" if self.rng.random() < 0.5 else f"{chatter} {user}"
                assistant = f"{assistant} {reply}" if self.rng.random() < 0.5 else assistant
        self.say(user, assistant)

    def update(self, old: _Fact, exchange: int) -> bool:
        rng = self.rng
        value = self.fresh(old.attribute.values)
        if value is None:
            return False
        self.facts.remove(old)
        new = _Fact(old.attribute, old.subject, old.detail, value, "", "update", exchange, len(self.messages))
        new.form = self.question_form(old)
        self.facts.append(new)
        text = self.sentence(self.wording(new.attribute, "update", self.names(new, new.form)), new, new.form)
        text = self.opened(text, w.LEAD_INS, 0.3)
        self.say(text, rng.choice((*w.UPDATE_ACKNOWLEDGEMENTS, *w.ACKNOWLEDGEMENTS[:6])))
        return True

    def count(self, exchange: int) -> bool:
        """An exchange that starts a running count or changes one."""
        rng = self.rng
        if not self.counts or (len(self.counts) < 2 and rng.random() < 0.25):
            noun = self.fresh("counted")
            if noun is None:
                return False
            amount = rng.randint(4, 30)
            self.counts.append(_Count(noun, amount, exchange, len(self.messages)))
            wordings = w.COUNT_STATEMENTS
        else:
            count = rng.choice(self.counts)
            noun, less = count.noun, count.total > 3 and rng.random() < 0.5
            amount = rng.randint(2, min(12, count.total - 1)) if less else rng.randint(2, 12)
            count.total += -amount if less else amount
            count.exchange, count.message, count.changed = exchange, len(self.messages), True
            wordings = w.COUNT_LESS if less else w.COUNT_MORE
        text = self.pick(wordings).format(V=amount, K=noun)
        self.say(self.opened(text, w.LEAD_INS, 0.3), rng.choice(w.ACKNOWLEDGEMENTS))
        return True

    def ask_count(self, count: _Count, exchange: int) -> None:
        """An exchange that asks for a running count."""
        rng = self.rng
        text = self.pick(w.COUNT_QUESTIONS).format(K=count.noun)
        reply = rng.choice(w.COUNT_ANSWERS).format(V=count.total, K=count.noun)
        self.say(self.opened(text, w.QUESTION_LEAD_INS, 0.3), self.opened(reply, {}, 0.0))
        self.check(str(count.total), count.message, exchange - count.exchange, "arithmetic", "count")
        count.changed = False

    def keep_secret(self, fact: _Fact, exchange: int) -> None:
        """An exchange that forbids to tell a fact."""
        rng = self.rng
        text = self.sentence(self.pick(w.SECRECY), fact, self.question_form(fact))
        fact.secret, fact.exchange, fact.message = True, exchange, len(self.messages)
        self.say(self.opened(text, w.LEAD_INS, 0.3), rng.choice(w.INSTRUCTION_ACKNOWLEDGEMENTS))

    def instruct(self, exchange: int) -> None:
        """An exchange that gives a standing instruction."""
        rng = self.rng
        sort = rng.choice(tuple(w.INSTRUCTIONS))
        word = self.fresh("names" if sort == "address" else "passwords")
        while word is None or " " in word:  # one word
            word = self.fresh("passwords")
        text = self.pick(w.INSTRUCTIONS[sort]).format(V=word)
        self.instruction = _Instruction(sort, word, exchange, len(self.messages))
        self.say(self.opened(text, w.LEAD_INS, 0.3), rng.choice(w.INSTRUCTION_ACKNOWLEDGEMENTS))

    def check_instruction(self, exchange: int) -> None:
        """Sometimes make the newest reply a question about the standing instruction."""
        given = self.instruction
        if given and self.askable(given.exchange, exchange) and self.rng.random() < 0.25:
            self.check(given.word, given.message, exchange - given.exchange, "instruction", given.sort)

    def askable(self, stated: int, exchange: int) -> bool:
        return self.config.min_distance <= exchange - stated <= self.config.max_distance

    def question_form(self, fact: _Fact) -> str:
        """A name of the subject that the statement makes clear: a name alone needs its name there."""
        forms = fact.subject.forms
        if fact.subject.myself or len(forms) == 1:
            return forms[0]
        if fact.subject not in self.people:
            return self.rng.choice((fact.form, self.rng.choice(forms)))
        if fact.form == forms[0]:
            return self.rng.choices(forms, (5, 3, 2))[0]
        return self.rng.choice((forms[0], fact.form))

    def ask(self, fact: _Fact, exchange: int) -> None:
        """An exchange that asks for a fact; the reply holds its value."""
        rng = self.rng
        form = self.question_form(fact)
        text = self.sentence(self.wording(fact.attribute, "question", self.names(fact, form)), fact, form)
        if fact.secret:
            self.say(self.opened(text, w.QUESTION_LEAD_INS, 0.3), rng.choice(w.REFUSALS))
            fact.asked = True
            self.check(w.REFUSAL, fact.message, exchange - fact.exchange, "refusal", fact.attribute.name)
            return
        reply = self.sentence(rng.choice(fact.attribute.answers), fact, form, reply=True)
        text, reply = self.opened(text, w.QUESTION_LEAD_INS, 0.3), self.opened(reply, {}, 0.0)
        fact.asked, answer = True, _gold(fact.value)
        if self.chance(self.config.pair_share):  # a new fact and the question in one message
            text = f"{_capital(self.state(exchange)[0])} {text}".strip()
            if answer.lower() in text.lower():  # by chance: then it is no question about the history
                self.say(text, reply)
                return
        self.say_aside(text, reply, answer)
        self.check(answer, fact.message, exchange - fact.exchange, fact.kind, fact.attribute.name)

    def chatter(self, most: int) -> tuple[str, str]:
        """One to `most` sentences that hold no fact, and a reply to the last."""
        rng = self.rng
        user, replies = rng.choice(w.CHATTER[self.config.split]).split(" => ")
        for _ in range(rng.randint(0, most - 1)):
            more, replies = rng.choice(w.CHATTER[self.config.split]).split(" => ")
            user += " " + more
        words = {slot: rng.choice(choices) for slot, choices in w.CHATTER_WORDS.items()}
        return user.format(**words), rng.choice(replies.split(" | "))

    def chat(self) -> None:
        """An exchange that holds no fact."""
        self.say(*self.chatter(self.config.chatter_sentences))

    def run(self) -> None:
        rng, config = self.rng, self.config
        if rng.random() < config.system_share:
            self.messages.append({"role": "system", "content": self.pick(w.SYSTEM_PROMPTS)})
        exchanges = rng.randint(config.min_exchanges, config.max_exchanges)
        instructed = rng.randrange(exchanges) if rng.random() < config.instruction_share else None
        for exchange in range(exchanges):
            facts = [f for f in self.facts if not f.asked and self.askable(f.exchange, exchange)]
            counts = [c for c in self.counts if c.changed and self.askable(c.exchange, exchange)]
            if exchange == instructed:
                self.instruct(exchange)
            elif (facts or counts) and rng.random() < config.question_share:
                at = rng.randrange(len(facts) + len(counts))
                if at < len(facts):
                    self.ask(facts[at], exchange)
                else:
                    self.ask_count(counts[at - len(facts)], exchange)
            else:
                if rng.random() < config.fact_share:
                    while not self.add_fact(exchange):
                        pass
                else:
                    self.chat()
                self.check_instruction(exchange)


def generate_dialogues(config: SynthConfig, words: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """The dialogues of a configuration, each by its own seed: dialogue i does not depend on the others.

    Args:
        words: plain words that often take the place of listed values ("my sister works as a kettle"),
            as far as they belong to the split. A small model that meets the same fifty jobs again and
            again learns them by heart, and then recalls no others; with any word for a job it has to
            learn to look it up.

    Yields:
        `{"id", "source", "messages": [{"role", "content"}], "meta": {"questions": [...]}}`. A question
        is `{"message", "answer", "evidence", "distance", "kind", "attribute"}`: the index of the reply,
        what it must contain, the index of the user message with the newest statement, the exchanges
        between the two.
    """
    words = _of_split(tuple(words), config.split)
    version = VERSION if config.split == "train" else HELD_OUT_VERSION
    for i in range(config.dialogues):
        dialogue = _Dialogue(random.Random(f"{version}/{config.seed}/{config.split}/{i}"), config, words)
        dialogue.run()
        yield {
            "id": f"synth-v{version}-{config.split}-{config.seed}-{i}",
            "source": f"sonic-kv synth v{version}",
            "messages": dialogue.messages,
            "meta": {"questions": dialogue.questions},
        }
