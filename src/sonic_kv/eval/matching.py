"""Is a written reply right, and how like another is it?"""

import re
from collections import Counter

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")


def words(text: str) -> list[str]:
    """Its words in lower case, without punctuation."""
    return re.findall(r"[\w:-]+", text.lower())


def last_number(text: str) -> float | None:
    """The last number in the text: `$1,234.50.` is 1234.5, `50%` is 50, `12 apples` is 12."""
    found = _NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


def exact_match(reply: str, answer: str, *, number: bool = False) -> bool:
    """Whether the reply holds the answer, as whole words; or, for a number, ends with the same one.

    An article in front of the answer may be missing: *benefits of reading* is *The benefits of reading*.
    """
    if number:
        wanted, found = last_number(answer), last_number(reply)
        return (
            wanted is not None and found is not None and abs(wanted - found) <= 1e-6 * max(1.0, abs(wanted))
        )
    wanted_words = words(answer)
    if len(wanted_words) > 1 and wanted_words[0] in ("the", "a", "an"):
        wanted_words = wanted_words[1:]
    return f" {' '.join(wanted_words)} " in f" {' '.join(words(reply))} "


def similarity(one: str, other: str) -> float:
    """F1 of the words of two texts, each counted as often as it occurs; 1 for two empty ones."""
    mine, theirs = Counter(words(one)), Counter(words(other))
    total = sum(mine.values()) + sum(theirs.values())
    return 2 * sum((mine & theirs).values()) / total if total else 1.0
