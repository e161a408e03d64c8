"""Write dialogues in which four facts are asked for after ten exchanges: `python facts.py OUT.jsonl`.

Twelve dialogues of 14 exchanges, 48 questions. Facts stand among everyday questions and their answers; nothing is
random.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

NAMES = [
    "Mira",
    "Jonas",
    "Priya",
    "Tomas",
    "Elif",
    "Oskar",
    "Laura",
    "Samuel",
    "Hana",
    "Peter",
    "Nadia",
    "Bruno",
]
CITIES = [
    "Lisbon",
    "Oslo",
    "Kyoto",
    "Quito",
    "Dublin",
    "Porto",
    "Vienna",
    "Boston",
    "Prague",
    "Madrid",
    "Zurich",
    "Athens",
]
PETS = [
    "parrot",
    "tortoise",
    "ferret",
    "rabbit",
    "hamster",
    "pony",
    "goat",
    "canary",
    "kitten",
    "snake",
    "goose",
    "donkey",
]
CODES = ["4711", "9034", "2685", "5190", "7342", "8826", "1357", "6048", "3219", "9571", "2460", "7683"]
DISHES = [
    "lasagna",
    "ramen",
    "paella",
    "goulash",
    "falafel",
    "risotto",
    "pancakes",
    "sushi",
    "dumplings",
    "curry",
    "pizza",
    "chili",
]
TALK = (
    (
        "What is a good way to wake up early?",
        "Go to bed at the same time every night, keep your phone away from the bed, and let daylight into the room as "
        "soon as the alarm rings.",
    ),
    (
        "Can you explain why the sky is blue?",
        "Sunlight is scattered by the molecules of the air, and blue light is scattered far more than red light, so "
        "blue reaches our eyes from every direction.",
    ),
    (
        "I am tired of my keyboard. Any tips?",
        "A mechanical keyboard with light switches makes typing more pleasant. Try a few in a shop before you buy one, "
        "because taste differs a lot.",
    ),
    (
        "How do I remove a coffee stain?",
        "Blot it with cold water first, then use a little dish soap or white vinegar, and wash the fabric as usual.",
    ),
    (
        "Is it better to run in the morning or in the evening?",
        "Both are fine. In the evening the body is warmer, which helps performance, while morning runs are easier to "
        "keep up as a habit.",
    ),
    (
        "What should I read next?",
        "If you like mysteries, try a classic by Agatha Christie. If you prefer science, a popular book about the "
        "oceans would be a good choice.",
    ),
    (
        "How often should I water a cactus?",
        "About every two weeks in summer and once a month in winter. Let the soil dry out completely in between.",
    ),
    (
        "Why do cats purr?",
        "They purr when they are content, but also when they are stressed or in pain. It seems to calm them down.",
    ),
)


def dialogues() -> Iterator[dict[str, object]]:
    """One dialogue for each name."""
    for n, (name, city, pet, code, dish) in enumerate(zip(NAMES, CITIES, PETS, CODES, DISHES, strict=True)):
        said = [
            (
                f"Hi! My name is {name} and I live in {city}.",
                f"Nice to meet you, {name}! How can I help you today?",
            ),
            (f"I have a {pet} that sleeps all day.", "That sounds like a calm companion."),
            (f"The code of my bike lock is {code}, please remember it.", "I will remember it."),
            (f"My favourite dish is {dish}.", "That is a good choice."),
        ]
        asked = [
            ("Which city do I live in?", f"You live in {city}.", city),
            ("What animal do I have?", f"You have a {pet}.", pet),
            ("What is the code of my bike lock?", f"The code is {code}.", code),
            ("What is my favourite dish?", f"Your favourite dish is {dish}.", dish),
        ]
        talk = [TALK[(n + i) % len(TALK)] for i in range(6)]
        turns = [
            said[0],
            talk[0],
            said[1],
            talk[1],
            said[2],
            talk[2],
            said[3],
            *talk[3:],
            *(a[:2] for a in asked),
        ]
        messages = [
            {"role": role, "content": text}
            for turn in turns
            for role, text in zip(("user", "assistant"), turn, strict=True)
        ]
        first = 2 * (len(turns) - len(asked))
        questions = [
            {"message": first + 2 * i + 1, "answer": answer, "kind": "fact", "distance": 10 - i}
            for i, (_, _, answer) in enumerate(asked)
        ]
        yield {"id": f"facts-{n}", "messages": messages, "questions": questions}


if __name__ == "__main__":
    Path(sys.argv[1]).write_text("".join(json.dumps(row) + "\n" for row in dialogues()))
