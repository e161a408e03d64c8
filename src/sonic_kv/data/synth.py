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
    refusal      a code that the user later declared secret; the answer is `REFUSAL`

How often each occurs is set by `Shares`.

The `validation` and `test` splits are those of version 2, to the letter: published figures rest on them.
Version 3 is a richer training split. Its wordings are put together from far more parts; two facts, or a fact
and a question, or either and chatter share a message; the user says more of themself; people are known by
relation only ("my brother"); plain words stand in for values and nouns of every sort.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sonic_kv.data.options import SynthConfig
from sonic_kv.data.phrasing import USUAL, Fact, Instruction, Phrasing, Shares, Subject, capital, casual
from sonic_kv.data.values import draw_value, gold, of_split
from sonic_kv.data.wordings import attributes, sentences, vocabulary

VERSION = 3
HELD_OUT_VERSION = 2  # of the validation and test splits
REFUSAL = "must not"  # what every refusal holds
CODE_ATTRIBUTES = ("code", "password", "time", "birthday")


@dataclass(eq=False)
class _Count:
    """A running count of `noun`. `exchange` and `message` are those of its newest change, if any."""

    noun: str
    total: int
    exchange: int
    message: int
    changed: bool = False


@dataclass
class Dialogue(Phrasing):
    """A dialogue in the making: who and what it is about, and what has been said."""

    messages: list[dict[str, str]] = field(default_factory=list)
    questions: list[dict[str, Any]] = field(default_factory=list)
    facts: list[Fact] = field(default_factory=list)
    people: list[Subject] = field(default_factory=list)
    things: dict[str, list[Subject]] = field(default_factory=dict)
    counts: list[_Count] = field(default_factory=list)
    instruction: Instruction | None = None
    used: set[str] = field(default_factory=set)  # names and values: none stands for two things
    myself: Subject = field(default_factory=lambda: Subject(("I",), pronoun=("I", "my", "me"), myself=True))

    def say(self, user: str, assistant: str) -> None:
        if self.chance(self.shares.casual):
            user = casual(user)
        self.messages.append({"role": "user", "content": user})
        if self.instruction is not None:
            assistant = self.instruction.obeyed(assistant)
        self.messages.append({"role": "assistant", "content": assistant})

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

    def fresh(self, pool: str) -> str | None:
        """A value no other fact of this dialogue has; none if the pool seems to be used up."""
        for _ in range(20):
            value = draw_value(self.rng, pool, self.config.split, self.words, self.shares.script)
            if value.lower() not in self.used:
                self.used.add(value.lower())
                return value
        return None

    def new_person(self) -> Subject | None:
        rng, taken = self.rng, {person.noun for person in self.people}
        female = rng.random() < 0.5
        own = vocabulary().relations_female if female else vocabulary().relations_male
        free = [r for r in (own if rng.random() < 0.6 else vocabulary().relations) if r not in taken]
        if not free:
            return None
        relation = rng.choice(free)
        pronoun = ("she", "her", "her") if female else ("he", "his", "him")
        if self.chance(self.shares.unnamed):
            return Subject((f"my {relation}",), relation, pronoun)
        pool = rng.choice(("female_names" if female else "male_names", "names"))
        name = self.fresh(pool)
        if name is None:
            return None
        return Subject((f"my {relation} {name}", name, f"my {relation}"), relation, pronoun)

    def person(self) -> Subject:
        rng = self.rng
        if rng.random() < (self.shares.myself if self.config.split == "train" else 0.15):
            return self.myself
        if len(self.people) < 6 and (not self.people or rng.random() < 0.55):
            person = self.new_person()
            if person:
                self.people.append(person)
                return person
        return rng.choice(self.people) if self.people else self.myself

    def relation(self) -> Subject:
        """Someone whose name can be stated: the user, or a person known by relation only."""
        unnamed = [person for person in self.people if len(person.forms) == 1]
        return self.rng.choice((self.myself, self.rng.choice(unnamed) if unnamed else self.myself))

    def thing(self, sort: str) -> Subject | None:
        """A new thing: its noun may be that of another, its full name never is."""
        rng, things = self.rng, vocabulary().things[sort]
        nouns, patterns = things.nouns, things.forms
        known = self.things.setdefault(sort, [])
        where = ""
        if "{where}" in patterns[0]:
            noun = rng.choice(known).noun if known and rng.random() < 0.5 else rng.choice(nouns)
            where = draw_value(rng, "rooms", self.config.split, self.words, self.shares.script)
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
        subject = Subject(forms, noun)
        known.append(subject)
        return subject

    def names(self, fact: Fact, form: str) -> bool:
        """Whether `form` names a person other than the user."""
        return fact.subject in self.people and form in fact.subject.forms

    def new_fact(self, exchange: int, subject: Subject | None = None) -> Fact | None:
        """A fact not yet stated; of `subject`, or of anyone or anything."""
        rng = self.rng
        known = attributes(self.config.split)
        attribute = rng.choice(known)
        if self.facts and rng.random() < 0.4:
            attribute = rng.choice(self.facts).attribute  # a distractor: the same attribute of another
        if subject is not None:
            attribute = rng.choice([a for a in known if a.subject == "person"])
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
        return Fact(attribute, subject, detail, value, "", kind, exchange, len(self.messages))

    def statement_form(self, subject: Subject) -> str:
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
        if rng.random() < self.shares.count:
            return self.count(exchange)
        told = [f for f in self.facts if f.kind == "code" and not f.secret and f.exchange < exchange]
        told = [f for f in told if f.attribute.subject in ("access", "account")]
        if told and rng.random() < self.shares.secret:
            self.keep_secret(rng.choice(told), exchange)
            return True
        changeable = [
            f for f in self.facts if f.attribute.updates[split] and f.exchange < exchange and not f.secret
        ]
        if changeable and rng.random() < self.shares.update:
            return self.update(rng.choice(changeable), exchange)
        text, fact = self.state(exchange)
        if fact is None:
            return False
        if self.chance(self.shares.pair):
            text = self.joined(text, self.state(exchange)[0])
        person = fact.attribute.subject == "person"
        replies: tuple[str, ...] = sentences().acknowledgements
        if person and rng.random() < 0.3:
            replies = sentences().person_acknowledgements
        him = "you" if fact.subject.myself else fact.subject.pronoun[2]
        self.say_aside(capital(text), rng.choice(replies).format(obj=him))
        return True

    def state(self, exchange: int) -> tuple[str, Fact | None]:
        """The statement of a new fact, sometimes of two of one person, in lower case, and the fact if any."""
        rng = self.rng
        fact = self.new_fact(exchange)
        if fact is None:
            return "", None
        fact.form = self.statement_form(fact.subject)
        text = self.sentence(
            self.wording(fact.attribute, "statement", self.names(fact, fact.form)), fact, fact.form
        )
        text = self.led(text, sentences().lead_ins, 0.3)
        self.facts.append(fact)
        person = fact.attribute.subject == "person"
        if person and rng.random() < self.shares.coreference:
            second = self.new_fact(exchange, fact.subject)
            if second is not None:
                second.form = fact.form
                if not fact.subject.myself:
                    second.kind = "coreference"
                more = self.sentence(
                    self.wording(second.attribute, "statement"), second, second.subject.pronoun[0]
                )
                text += f" {capital(more)}"
                self.facts.append(second)
        return text, fact

    def say_aside(self, user: str, assistant: str, answer: str = "") -> None:
        """An exchange; in training sometimes with chatter beside it that does not give the answer away."""
        if self.chance(self.shares.aside):
            chatter, reply = self.chatter(1)
            if not answer or answer.lower() not in chatter.lower():
                user = f"{user} {chatter}" if self.rng.random() < 0.5 else f"{chatter} {user}"
                assistant = f"{assistant} {reply}" if self.rng.random() < 0.5 else assistant
        self.say(user, assistant)

    def update(self, old: Fact, exchange: int) -> bool:
        rng = self.rng
        value = self.fresh(old.attribute.values)
        if value is None:
            return False
        self.facts.remove(old)
        new = Fact(old.attribute, old.subject, old.detail, value, "", "update", exchange, len(self.messages))
        new.form = self.question_form(old)
        self.facts.append(new)
        text = self.sentence(self.wording(new.attribute, "update", self.names(new, new.form)), new, new.form)
        text = self.opened(text, sentences().lead_ins, 0.3)
        self.say(text, rng.choice((*sentences().update_acknowledgements, *sentences().acknowledgements[:6])))
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
            wordings = sentences().count_statements
        else:
            count = rng.choice(self.counts)
            noun, less = count.noun, count.total > 3 and rng.random() < 0.5
            amount = rng.randint(2, min(12, count.total - 1)) if less else rng.randint(2, 12)
            count.total += -amount if less else amount
            count.exchange, count.message, count.changed = exchange, len(self.messages), True
            wordings = sentences().count_less if less else sentences().count_more
        text = self.pick(wordings).format(V=amount, K=noun)
        self.say(self.opened(text, sentences().lead_ins, 0.3), rng.choice(sentences().acknowledgements))
        return True

    def ask_count(self, count: _Count, exchange: int) -> None:
        """An exchange that asks for a running count."""
        rng = self.rng
        text = self.pick(sentences().count_questions).format(K=count.noun)
        reply = rng.choice(sentences().count_answers).format(V=count.total, K=count.noun)
        self.say(self.opened(text, sentences().question_lead_ins, 0.3), self.opened(reply, {}, 0.0))
        self.check(str(count.total), count.message, exchange - count.exchange, "arithmetic", "count")
        count.changed = False

    def keep_secret(self, fact: Fact, exchange: int) -> None:
        """An exchange that forbids to tell a fact."""
        rng = self.rng
        text = self.sentence(self.pick(sentences().secrecy), fact, self.question_form(fact))
        fact.secret, fact.exchange, fact.message = True, exchange, len(self.messages)
        self.say(
            self.opened(text, sentences().lead_ins, 0.3), rng.choice(sentences().instruction_acknowledgements)
        )

    def instruct(self, exchange: int) -> None:
        """An exchange that gives a standing instruction."""
        rng = self.rng
        sort = rng.choice(tuple(sentences().instructions))
        word = self.fresh("names" if sort == "address" else "passwords")
        while word is None or " " in word:  # one word
            word = self.fresh("passwords")
        text = self.pick(sentences().instructions[sort]).format(V=word)
        self.instruction = Instruction(sort, word, exchange, len(self.messages))
        self.say(
            self.opened(text, sentences().lead_ins, 0.3), rng.choice(sentences().instruction_acknowledgements)
        )

    def check_instruction(self, exchange: int) -> None:
        """Sometimes make the newest reply a question about the standing instruction."""
        given = self.instruction
        if given and self.askable(given.exchange, exchange) and self.rng.random() < 0.25:
            self.check(given.word, given.message, exchange - given.exchange, "instruction", given.sort)

    def askable(self, stated: int, exchange: int) -> bool:
        return self.config.min_distance <= exchange - stated <= self.config.max_distance

    def question_form(self, fact: Fact) -> str:
        """A name of the subject that the statement makes clear: a name alone needs its name there."""
        forms = fact.subject.forms
        if fact.subject.myself or len(forms) == 1:
            return forms[0]
        if fact.subject not in self.people:
            return self.rng.choice((fact.form, self.rng.choice(forms)))
        if fact.form == forms[0]:
            return self.rng.choices(forms, (5, 3, 2))[0]
        return self.rng.choice((forms[0], fact.form))

    def ask(self, fact: Fact, exchange: int) -> None:
        """An exchange that asks for a fact; the reply holds its value."""
        rng = self.rng
        form = self.question_form(fact)
        text = self.sentence(self.wording(fact.attribute, "question", self.names(fact, form)), fact, form)
        if fact.secret:
            self.say(self.opened(text, sentences().question_lead_ins, 0.3), rng.choice(sentences().refusals))
            fact.asked = True
            self.check(REFUSAL, fact.message, exchange - fact.exchange, "refusal", fact.attribute.name)
            return
        reply = self.sentence(rng.choice(fact.attribute.answers), fact, form, reply=True)
        text, reply = self.opened(text, sentences().question_lead_ins, 0.3), self.opened(reply, {}, 0.0)
        fact.asked, answer = True, gold(fact.value)
        if self.chance(self.shares.pair):  # a new fact and the question in one message
            text = f"{capital(self.state(exchange)[0])} {text}".strip()
            if answer.lower() in text.lower():  # by chance: then it is no question about the history
                self.say(text, reply)
                return
        self.say_aside(text, reply, answer)
        self.check(answer, fact.message, exchange - fact.exchange, fact.kind, fact.attribute.name)

    def chat(self) -> None:
        """An exchange that holds no fact."""
        self.say(*self.chatter(self.config.chatter_sentences))

    def run(self) -> None:
        rng, config = self.rng, self.config
        if rng.random() < self.shares.system:
            self.messages.append({"role": "system", "content": self.pick(sentences().system_prompts)})
        exchanges = rng.randint(config.min_exchanges, config.max_exchanges)
        instructed = rng.randrange(exchanges) if rng.random() < self.shares.instruction else None
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


def generate_dialogues(
    config: SynthConfig, words: Sequence[str] = (), shares: Shares = USUAL
) -> Iterator[dict[str, Any]]:
    """The dialogues of a configuration, each by its own seed: dialogue i does not depend on the others.

    Args:
        words: plain words that often take the place of listed values ("my sister works as a kettle"),
            as far as they belong to the split. A small model that meets the same fifty jobs again and
            again learns them by heart, and then recalls no others; with any word for a job it has to
            learn to look it up.
        shares: how often things happen.

    Yields:
        `{"id", "source", "messages": [{"role", "content"}], "meta": {"questions": [...]}}`. A question
        is `{"message", "answer", "evidence", "distance", "kind", "attribute"}`: the index of the reply,
        what it must contain, the index of the user message with the newest statement, the exchanges
        between the two.
    """
    words = of_split(tuple(words), config.split)
    version = VERSION if config.split == "train" else HELD_OUT_VERSION
    for i in range(config.dialogues):
        rng = random.Random(f"{version}/{config.seed}/{config.split}/{i}")
        dialogue = Dialogue(rng, config, words, shares)
        dialogue.run()
        yield {
            "id": f"synth-v{version}-{config.split}-{config.seed}-{i}",
            "source": f"sonic-kv synth v{version}",
            "messages": dialogue.messages,
            "meta": {"questions": dialogue.questions},
        }
