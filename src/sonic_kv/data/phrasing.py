"""How synthetic facts are said: draws wordings, puts training ones together, and fills them in."""

import random
import re
from dataclasses import dataclass
from functools import cache

from sonic_kv.data.options import SynthConfig
from sonic_kv.data.wordings import Attribute, BySplit, Lines, frames, sentences, vocabulary

_FORM = re.compile(r"<([^/<>]*)/([^/<>]*)>")
_SMALL = re.compile(r"\b(What|Where|Who|When|How|Which|My|The|It|Our|We|Do|Can|Please|Tell|In|By|For)\b")
_CHOICE = re.compile(r"\(([^()]*)\)")


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


@cache
def _long() -> "re.Pattern[str]":
    return re.compile(rf"\b({'|'.join(vocabulary().contractions)})\b", re.IGNORECASE)


def casual(text: str) -> str:
    """A message as typed in a hurry: contracted, without the mark at its end or a capital that no name needs."""
    short = vocabulary().contractions
    text = _long().sub(lambda m: (capital if m[0][0].isupper() else str)(short[m[0].lower()]), text)
    return _SMALL.sub(lambda m: m[0].lower(), text).rstrip(".?")


@dataclass(eq=False)
class Subject:
    """A person or a thing of the dialogue. `forms` are the ways to name it, the fullest first."""

    forms: tuple[str, ...]
    noun: str = ""
    pronoun: tuple[str, str, str] = ("it", "its", "it")
    myself: bool = False
    introduced: bool = False


@dataclass(eq=False)
class Fact:
    """What was stated: `form` is how the statement named the subject."""

    attribute: Attribute
    subject: Subject
    detail: str
    value: str
    form: str
    kind: str
    exchange: int
    message: int
    asked: bool = False
    secret: bool = False


@dataclass
class Instruction:
    """What every reply must hold from now on, and where: "begin", "end" or "address"."""

    sort: str
    word: str
    exchange: int
    message: int

    def obeyed(self, reply: str) -> str:
        """The reply as the instruction wants it."""
        word = self.word
        if self.sort == "begin":
            return f"{capital(word)}! {reply}"
        if self.sort == "end":
            return f"{reply} {capital(word)}!"
        return f"{reply[:-1]}, {word}{reply[-1]}"


@dataclass(frozen=True)
class Shares:
    """How often things happen in a dialogue; other numbers make another version of the generator.

    Attributes:
        update: of the stated facts, those that change an earlier one.
        coreference: facts followed by a second one about "she" or "he".
        count: stated facts that start or change a running count.
        secret: codes and passwords that the user later declares secret.
        system, instruction: dialogues with a system prompt, with a standing instruction.
        script: composed names in other scripts than the Latin one.
        noise: in training, sentences with words left out and put in; likewise all that follow.
        pair: messages that state a fact beside their own matter.
        aside: messages of facts and questions that hold chatter too.
        myself: facts about people that are about the user.
        casual: messages that are typed in a hurry: what's, I'm.
        unnamed: people who are known by relation only.
    """

    update: float = 0.12
    coreference: float = 0.15
    count: float = 0.15
    secret: float = 0.4
    system: float = 0.4
    instruction: float = 0.15
    script: float = 0.05
    noise: float = 0.3
    pair: float = 0.15
    aside: float = 0.15
    myself: float = 0.25
    casual: float = 0.15
    unnamed: float = 0.15


USUAL = Shares()


@dataclass
class Phrasing:
    """Draws the sentences of one dialogue.

    Args:
        words: plain words that take the place of listed values and of words left out.
    """

    rng: random.Random
    config: SynthConfig
    words: Lines = ()
    shares: Shares = USUAL

    def chance(self, share: float) -> bool:
        """Whether something that only training dialogues have happens now."""
        return self.config.split == "train" and self.rng.random() < share

    def pick(self, wordings: BySplit) -> str:
        """A wording of this dialogue's split."""
        return self.chosen(self.rng.choice(wordings[self.config.split]))

    def chosen(self, wording: str) -> str:
        """A wording with one of each of its alternatives "(a|b)"."""
        return _CHOICE.sub(lambda m: self.rng.choice(m[1].split("|")), wording)

    def wording(self, attribute: Attribute, sort: str, topic: bool = False) -> str:
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
                found = rng.choice(frames().topic).replace("{W}", rest)
            elif found.count("{K}") == 1:
                frame = rng.choice(frames().topic).replace("{S}", "{K}")
                found = frame.replace("{W}", found.replace("{K}", "it"))
        if rng.random() < 0.15:
            found = found[:-1] + rng.choice(
                frames().question_tails if sort == "question" else frames().statement_tails
            )
        found = self.chosen(found)
        return self.noisy(found) if rng.random() < self.shares.noise else found

    def composed(self, attribute: Attribute, sort: str) -> str:
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
                kept.append(rng.choice(frames().fillers))
            if word.isalpha() and self.words and rng.random() < 0.08:
                kept.append(rng.choice(self.words))
            elif not word.isalpha() or rng.random() > 0.15:
                kept.append(word)
        return " ".join((*kept, last))

    def sentence(self, wording: str, fact: Fact, form: str, *, reply: bool = False) -> str:
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

    def led(self, text: str, lead_ins: BySplit, share: float) -> str:
        """The sentence with a lead-in before it, sometimes."""
        return f"{self.pick(lead_ins)} {text}" if self.rng.random() < share else text

    def opened(self, text: str, lead_ins: BySplit, share: float) -> str:
        """The same, capitalised."""
        return capital(self.led(text, lead_ins, share))

    def joined(self, text: str, more: str) -> str:
        """Two statements of a message, if there are two; often as one sentence."""
        if more and text.endswith(".") and self.rng.random() < 0.5:
            return text[:-1] + self.rng.choice((" and ", ", and ", "; ")) + more
        return f"{text} {capital(more)}".strip()

    def chatter(self, most: int) -> tuple[str, str]:
        """One to `most` sentences that hold no fact, and a reply to the last."""
        rng = self.rng
        user, replies = rng.choice(sentences().chatter[self.config.split]).split(" => ")
        for _ in range(rng.randint(0, most - 1)):
            more, replies = rng.choice(sentences().chatter[self.config.split]).split(" => ")
            user += " " + more
        words = {slot: rng.choice(choices) for slot, choices in vocabulary().chatter_words.items()}
        return user.format(**words), rng.choice(replies.split(" | "))
