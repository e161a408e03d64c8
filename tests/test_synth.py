"""The synthetic generator: what its splits share, and what its questions promise."""

import dataclasses
import hashlib
import itertools
import json
import random
import re
import time
import unicodedata
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from sonic_kv.data import wordings
from sonic_kv.data.options import SynthConfig
from sonic_kv.data.phrasing import Shares
from sonic_kv.data.synth import REFUSAL, Dialogue, generate_dialogues
from sonic_kv.data.values import LISTED, entities, split_of
from sonic_kv.data.wordings import SPLITS, attributes
from sonic_kv.errors import ConfigError, DataError
from sonic_kv.model.messages import check_messages

SENTENCES = wordings.sentences()
BLOCKS = (
    *(SENTENCES.system_prompts, SENTENCES.lead_ins, SENTENCES.question_lead_ins, SENTENCES.secrecy),
    *(SENTENCES.count_statements, SENTENCES.count_more, SENTENCES.count_less, SENTENCES.count_questions),
    *SENTENCES.instructions.values(),
)
PAIRS = tuple(itertools.combinations(SPLITS, 2))


def expanded(wording: str) -> Iterator[str]:
    """A wording with every choice of its alternatives "(a|b)"."""
    *texts, last = re.split(r"\(([^()]*)\)", wording)
    choices = [text.split("|") for text in texts[1::2]]
    for chosen in itertools.product(*choices):
        yield "".join(map("".join, zip(texts[::2], chosen, strict=True))) + last


@cache
def templates(split: str) -> frozenset[str]:
    """Every wording of a split, as `attribute.sort: wording`; of training those written or made of names.

    The others are drawn on top: frames round written statements, topics, tails, noise.
    """
    if split != "train":
        return frozenset(
            f"{attribute.name}.{sort}: {wording}"
            for attribute in attributes(split)
            for sort in attribute.composed
            for wording in attribute.wordings(sort)[split]
        )
    found, around = set(), wordings.frames()
    for attribute in attributes(split):
        for sort, pairs in attribute.composed.items():
            written = attribute.wordings(sort)["train"]
            made = [
                frame.replace("{N}", part)
                for frames, parts in pairs
                if frames not in (around.clause, around.update_clause)
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
    listed = {name: frozenset(entities(name, split)) for name in LISTED}
    return {"templates": templates(split), **listed}


def words(text: str) -> list[str]:
    return re.findall(r"[\w:-]+", text.lower())


def holds(text: str, answer: str) -> bool:
    """Whether `text` contains `answer` as whole words."""
    return f" {' '.join(words(answer))} " in f" {' '.join(words(text))} "


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_splits_share_no_wording_and_no_listed_entity(one: str, other: str) -> None:
    mine = {entry for entries in pools(one).values() for entry in entries}
    theirs = {entry for entries in pools(other).values() for entry in entries}
    assert not mine & theirs


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_splits_share_no_chatter_and_no_system_prompt(one: str, other: str) -> None:
    assert not set(SENTENCES.chatter[one]) & set(SENTENCES.chatter[other])
    for block in BLOCKS:
        mine, theirs = (
            {text for wording in block[split] for text in expanded(wording)} for split in (one, other)
        )
        assert not mine & theirs


def test_what_training_puts_together_is_not_near_to_a_held_out_wording() -> None:
    """Drawn without noise, topics and tails, which come on top."""
    dialogue = Dialogue(random.Random(0), SynthConfig())
    for attribute in attributes("train"):
        for sort in attribute.composed:
            held_out = {w for split in SPLITS[1:] for w in attribute.wordings(sort)[split]}
            for _ in range(300 if attribute.wordings(sort)["train"] else 0):
                drawn = dialogue.composed(attribute, sort)
                assert drawn not in held_out
                assert drawn in attribute.wordings(sort)["train"] or attribute.is_apart(drawn)


def test_one_word_more_or_less_or_another_is_near() -> None:
    city = next(a for a in attributes("test") if a.name == "city")
    held_out = city.questions["validation"][0]
    words = held_out.split(" ")
    for near in (words, words[1:], [*words[:1], "big", *words[1:]], [*words[:1], "other", *words[2:]]):
        assert not city.is_apart(" ".join(near))
    assert city.is_apart(" ".join(["other", "things", *words[2:]]))


def test_held_out_blocks_have_no_choices() -> None:
    """These belong to training: drawing one would change the dialogues that published figures rest on."""
    for split in SPLITS[1:]:
        assert not any("(" in template for template in templates(split))
        for block in BLOCKS:
            assert not any("(" in wording for wording in block[split])


@pytest.mark.parametrize(
    ("split", "digest"),
    [("train", "db2e3db2de6f1fb1"), ("validation", "3248193cbd4d5082"), ("test", "72cf4c6fdd071052")],
)
def test_dialogues_stay_as_published_figures_met_them(split: str, digest: str) -> None:
    config = SynthConfig(dialogues=100, split=split, seed=2026, min_exchanges=12, max_exchanges=12)
    told = json.dumps(list(generate_dialogues(config)), sort_keys=True)
    assert hashlib.blake2b(told.encode(), digest_size=8).hexdigest() == digest


@pytest.mark.parametrize("split", SPLITS)
def test_every_split_has_wordings_and_entities_of_every_sort(split: str) -> None:
    assert all(pools(split).values())
    for attribute in attributes("test"):
        assert attribute.statements[split]
        assert attribute.questions[split]
        assert attribute.updates["train"] or not attribute.updates[split]
    assert len(templates("train")) > len(templates("test"))


@pytest.mark.parametrize("split", SPLITS)
def test_answers_belong_to_their_split(split: str) -> None:
    config = SynthConfig(dialogues=200, split=split)
    for dialogue in generate_dialogues(config):
        for question in dialogue["meta"]["questions"]:
            assert question["kind"] in ("arithmetic", "refusal") or split_of(question["answer"]) == split


@pytest.mark.parametrize("split", SPLITS)
def test_a_question_can_be_answered_from_its_evidence_only(split: str) -> None:
    config = SynthConfig(dialogues=300, split=split, seed=1)
    asked = 0
    for dialogue in generate_dialogues(config):
        messages = dialogue["messages"]
        check_messages(messages)
        for question in dialogue["meta"]["questions"]:
            asked += 1
            reply, evidence, answer = question["message"], question["evidence"], question["answer"]
            assert messages[reply]["role"] == "assistant"
            assert messages[evidence]["role"] == "user"
            assert holds(messages[reply]["content"], answer)
            assert (reply - 1 - evidence) // 2 == question["distance"]
            if question["kind"] in ("arithmetic", "refusal"):
                continue
            assert holds(messages[evidence]["content"], answer)
            assert not holds(messages[reply - 1]["content"], answer)
            between = messages[evidence + 1 : reply - 1]
            told = any(holds(m["content"], answer) for m in between if m["role"] == "assistant")
            assert told == (question["kind"] == "instruction" and len(between) > 0)
    assert asked > 300


def test_no_two_things_of_a_dialogue_have_the_same_answer() -> None:
    for dialogue in generate_dialogues(SynthConfig(dialogues=300)):
        asked = [
            q for q in dialogue["meta"]["questions"] if q["kind"] in ("fact", "code", "update", "coreference")
        ]
        answers = [question["answer"].lower() for question in asked]
        assert len(answers) == len(set(answers))


@pytest.mark.parametrize("distance", [1, 4, 8])
def test_distance_is_exact(distance: int) -> None:
    config = SynthConfig(
        dialogues=50, min_distance=distance, max_distance=distance, min_exchanges=12, max_exchanges=12
    )
    found = [q["distance"] for d in generate_dialogues(config) for q in d["meta"]["questions"]]
    assert len(found) > 20
    assert set(found) == {distance}


def test_training_says_two_things_in_one_message_and_its_records_stay_right() -> None:
    """Two facts, a fact and a question, chatter beside either; the user's own name; people without a name."""
    shares = Shares(pair=1.0, aside=1.0, coreference=0.0, unnamed=0.5)
    two_facts = stated_and_asked = names = 0
    for dialogue in generate_dialogues(SynthConfig(dialogues=300), shares=shares):
        questions = dialogue["meta"]["questions"]
        facts = [q for q in questions if q["kind"] in ("fact", "code")]
        two_facts += len(facts) - len({q["evidence"] for q in facts})
        asking = {q["message"] - 1 for q in questions}
        stated_and_asked += sum(q["evidence"] in asking for q in facts)
        names += sum(q["attribute"] == "name" for q in facts)
        for question in facts:
            assert holds(dialogue["messages"][question["evidence"]]["content"], question["answer"])
            assert not holds(dialogue["messages"][question["message"] - 1]["content"], question["answer"])
    assert min(two_facts, stated_and_asked, names) > 30


def test_shares_of_training_change_no_held_out_dialogue() -> None:
    config = SynthConfig(dialogues=20, split="test")
    changed = Shares(noise=0.9, pair=0.9, aside=0.9, myself=0.9, unnamed=0.9, casual=0.9)
    assert list(generate_dialogues(config)) == list(generate_dialogues(config, shares=changed))


def test_every_kind_occurs() -> None:
    config = SynthConfig(dialogues=500)
    kinds = {q["kind"] for d in generate_dialogues(config) for q in d["meta"]["questions"]}
    assert kinds == {"fact", "code", "update", "coreference", "arithmetic", "instruction", "refusal"}


def test_a_running_count_is_what_its_changes_make_it() -> None:
    """Recomputed from the words of the dialogue alone."""
    less = re.compile(
        r"gave|given|lost|sold|broke|took|used up|threw|handed|returned|minus|gone|stolen|missing|went"
    )
    config = SynthConfig(dialogues=300, question_share=0.3)
    asked, shares = 0, Shares(count=0.7, pair=0.0, aside=0.0, casual=0.0)
    for dialogue in generate_dialogues(config, shares=shares):
        totals: dict[str, int] = {}
        questions = {q["message"]: q for q in dialogue["meta"]["questions"] if q["kind"] == "arithmetic"}
        for i, message in enumerate(dialogue["messages"]):
            text = message["content"].lower()
            noun = next((n for n in wordings.vocabulary().counted if re.search(rf"\b{n}\b", text)), None)
            amount = re.search(r"\b\d+\b", text)
            if i in questions:
                asking = dialogue["messages"][i - 1]["content"].lower()
                noun = next(n for n in wordings.vocabulary().counted if re.search(rf"\b{n}\b", asking))
                assert questions[i]["answer"] == str(totals[noun])
                asked += 1
            elif message["role"] == "user" and noun and amount:
                away = less.search(text) and "somebody" not in text
                sign = -1 if away else 1
                totals[noun] = totals.get(noun, 0) + sign * int(amount[0])
    assert asked > 100


def test_a_standing_instruction_holds_to_the_end() -> None:
    config = SynthConfig(dialogues=100, min_exchanges=14, max_exchanges=20)
    distances = []
    for dialogue in generate_dialogues(config, shares=Shares(instruction=1.0)):
        for question in dialogue["meta"]["questions"]:
            if question["kind"] == "instruction":
                later = dialogue["messages"][question["evidence"] + 1 :: 2]
                assert all(holds(m["content"], question["answer"]) for m in later)
                distances.append(question["distance"])
    assert max(distances) > 10


def test_a_secret_is_not_told_after_it_was_declared() -> None:
    refused = 0
    for dialogue in generate_dialogues(SynthConfig(dialogues=1000), shares=Shares(secret=1.0)):
        for question in dialogue["meta"]["questions"]:
            if question["kind"] == "refusal":
                refused += 1
                assert holds(dialogue["messages"][question["message"]]["content"], REFUSAL)
    assert refused > 30


def test_names_are_drawn_in_several_scripts() -> None:
    dialogues = generate_dialogues(SynthConfig(dialogues=200), shares=Shares(script=1.0))
    text = "".join(m["content"] for d in dialogues for m in d["messages"])
    assert {unicodedata.name(c).split()[0] for c in text if c.isalpha()} >= {
        *("LATIN", "CYRILLIC", "GREEK", "HEBREW", "ARABIC", "DEVANAGARI", "HANGUL", "KATAKANA", "CJK")
    }


def test_same_seed_same_dialogues_and_each_by_itself() -> None:
    config = SynthConfig(dialogues=20, seed=3)
    dialogues = list(generate_dialogues(config))
    assert dialogues == list(generate_dialogues(config))
    assert dialogues[:5] == list(generate_dialogues(dataclasses.replace(config, dialogues=5)))
    assert dialogues != list(generate_dialogues(dataclasses.replace(config, seed=4)))
    assert len({dialogue["id"] for dialogue in dialogues}) == 20


def test_no_placeholder_is_left() -> None:
    for split in SPLITS:
        for dialogue in generate_dialogues(SynthConfig(dialogues=300, split=split)):
            for message in dialogue["messages"]:
                assert not re.search(r"[{}<>]", message["content"])


def test_entities_are_listed_once() -> None:
    for split in SPLITS:
        cities = entities("cities", split)
        assert len(cities) == len(set(cities))


@pytest.mark.parametrize(
    "wrong",
    [
        {"dialogues": -1},
        {"split": "dev"},
        {"min_exchanges": 5, "max_exchanges": 4},
        {"min_distance": 0},
        {"question_share": 1.5},
        {"chatter_sentences": 0},
    ],
)
def test_bad_settings_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong)).split("_")[-1]):
        SynthConfig(**wrong)


@pytest.mark.slow
def test_ten_thousand_dialogues_take_less_than_twenty_seconds() -> None:
    started = time.process_time()
    assert sum(1 for _ in generate_dialogues(SynthConfig(dialogues=10_000))) == 10_000
    assert time.process_time() - started < 20


def test_words_stand_in_only_in_their_own_split() -> None:
    listed = [f"word{'abcdefghij'[i // 10]}{'abcdefghij'[i % 10]}" for i in range(100)]
    for split in SPLITS:
        config = SynthConfig(dialogues=100, split=split)
        answers = {
            q["answer"].lower() for d in generate_dialogues(config, listed) for q in d["meta"]["questions"]
        }
        used = answers & set(listed)
        assert used
        assert {split_of(word) for word in used} == {split}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('statement = "{N} is {Q}."', "unknown placeholder {Q}"),
        ('statement = "{N} is {V}."', "is missing or unknown"),
        ("statement = ", "Invalid value"),
    ],
)
def test_a_damaged_word_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, reason: str
) -> None:
    (tmp_path / "frames.toml").write_text(text)
    monkeypatch.setattr(wordings, "FOLDER", tmp_path)
    wordings.frames.cache_clear()
    with pytest.raises(DataError, match=reason):
        wordings.frames()
