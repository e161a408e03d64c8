"""Compress the dialogues of your own model: `python own_model.py PATH_OR_HUB_ID [ADAPTER]`.

Without an adapter entries are chosen by what recent queries look at. `sonic-kv train` makes one.
"""

import sys

from sonic_kv import Budget, ChatSession, SonicModel

HISTORY = [
    {"role": "user", "content": "I have two cats, Nils and Frida. Frida is afraid of the vacuum cleaner."},
    {"role": "assistant", "content": "Poor Frida! I will remember both of them."},
    {"role": "user", "content": "On Tuesdays I play the cello in a quartet."},
    {"role": "assistant", "content": "That sounds lovely."},
]


def main(model: str, adapter: str | None = None) -> None:
    sonic = SonicModel.from_pretrained(model, adapter)
    for ratio in (0.0, 0.5, 0.8):
        chat = ChatSession(sonic, budget=Budget(compression_ratio=ratio))
        chat.extend(HISTORY)
        reply = chat.send("Which of my cats is afraid, and of what?")
        print(f"{ratio:.0%} removed, {chat.stats.entries} entries: {reply.text}")


if __name__ == "__main__":
    main(*sys.argv[1:])
