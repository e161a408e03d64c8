"""Values of synthetic facts: names, codes, titles, places. Each belongs to one split, by its hash."""

import hashlib
import random
from functools import cache

from sonic_kv.data.wordings import Lines, vocabulary

LISTED = (
    *(
        "female_names",
        "male_names",
        "cities",
        "jobs",
        "foods",
        "colours",
        "instruments",
        "sports",
        "languages",
    ),
    *("rooms", "counted"),
)
_CAPITALISED = ("female_names", "male_names", "places", "languages")


def split_of(entity: str) -> str:
    """The split an entity belongs to, by hash: 76 % train, 8 % validation, 16 % test."""
    bucket = hashlib.blake2b(entity.lower().encode(), digest_size=2).digest()
    share = int.from_bytes(bucket, "big") / 65536
    return "train" if share < 0.76 else "validation" if share < 0.84 else "test"


@cache
def entities(pool: str, split: str) -> Lines:
    """The listed entities of a split. Pools that are composed at random have no list, see `split_of`."""
    return tuple(sorted({word for word in getattr(vocabulary(), pool) if split_of(word) == split}))


def _word(rng: random.Random, syllables: int, words: Lines = ()) -> str:
    """An invented word, or one of `words` if there are any."""
    if words and rng.random() < 0.3:
        return rng.choice(words)
    parts = [rng.choice(vocabulary().onsets) + rng.choice(vocabulary().vowels) for _ in range(syllables)]
    return "".join(parts) + rng.choice(vocabulary().codas)


def _foreign_word(rng: random.Random) -> str:
    """A name in another script than the Latin one."""
    first, middle, last = rng.choice(vocabulary().scripts)
    return rng.choice(first) + rng.choice(middle) + rng.choice(("", rng.choice(last)))


def _draw(rng: random.Random, pool: str, script_share: float, words: Lines) -> str:
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
        return f"{rng.randrange(1, 29)} {rng.choice(vocabulary().months)}"
    if pool == "passwords":
        sort = rng.random()
        if sort < 0.4:
            return _word(rng, rng.choice((2, 3)), words)
        if sort < 0.6:
            return _word(rng, 2, words) + str(rng.randrange(10, 1000))
        return f"{rng.choice(vocabulary().spot_words)} {rng.choice(vocabulary().thing_words)}"
    if pool == "spots":
        return f"the {rng.choice(vocabulary().spot_words)} {rng.choice(vocabulary().containers)}"
    if pool == "titles":
        if rng.random() < 0.5:
            return _word(rng, rng.choice((2, 3)), words).capitalize()
        return f"{rng.choice(vocabulary().spot_words)} {rng.choice(vocabulary().thing_words)}".title()
    if pool == "venues":
        return f"{rng.choice(vocabulary().venue_kinds)} {_word(rng, rng.choice((1, 2)), words).capitalize()}"
    if pool == "companies":
        name = _word(rng, 2, words).capitalize()
        return f"{name} {rng.choice(vocabulary().company_kinds)}" if rng.random() < 0.4 else name
    if pool == "places":
        return (_word(rng, rng.choice((1, 2)), words) + rng.choice(vocabulary().city_endings)).capitalize()
    if pool in ("pet_names", "names"):
        if rng.random() < script_share:
            return _foreign_word(rng)
        return _word(rng, rng.choice((1, 2, 2)), words).capitalize()
    raise KeyError(pool)


def _composed(rng: random.Random, pool: str, split: str, script_share: float, words: Lines) -> str:
    """A random value of a composed pool that belongs to `split`."""
    while True:
        value = _draw(rng, pool, script_share, words)
        if split_of(gold(value)) == split and (len(value) > 2 or not value.isascii()):
            return value


def gold(value: str) -> str:
    """What a reply must contain to be right: the value without its article."""
    return value.removeprefix("the ")


@cache
def of_split(words: Lines, split: str) -> Lines:
    return tuple(word for word in words if split_of(word) == split)


def draw_value(rng: random.Random, pool: str, split: str, words: Lines, script_share: float) -> str:
    """A value of a pool; where the pool is listed, more often one of `words` if there are any.

    In training they are part of many composed values too: only what is copied in training is copied later.

    Args:
        script_share: of composed names, those in other scripts than the Latin one.
    """
    open_ended = pool == "places" or (pool in LISTED and pool != "counted")
    train = split == "train"
    if words and open_ended and rng.random() < (0.75 if train else 0.6):
        word = rng.choice(words)
        return word.capitalize() if pool in _CAPITALISED else word
    if pool == "places" and rng.random() < 0.4:
        return rng.choice(entities("cities", split))
    if pool in LISTED:
        return rng.choice(entities(pool, split))
    return _composed(rng, pool, split, script_share, words if train else ())
