"""A dialogue under a budget: what the cache holds after each turn, and a budget lowered on the way."""

from sonic_kv import Budget, ChatSession, SonicModel

TURNS = [
    "My sister Ada lives in Oslo.",
    "The code of the garage door is 4711.",
    "I might paint the kitchen yellow this weekend.",
    "Where does Ada live?",
    "What is the code of the garage door?",
]


def main() -> None:
    chat = ChatSession(SonicModel.from_pretrained(), budget=Budget(compression_ratio=0.5))
    for turn in TURNS:
        print(f"user:      {turn}\nassistant: ", end="")
        for piece in chat.stream(turn):
            print(piece, end="", flush=True)
        stats = chat.stats
        print(
            f"\n           {stats.entries} entries for {stats.logical_tokens} tokens, {stats.bytes:,} bytes"
        )
    chat.set_budget(Budget(compression_ratio=0.95))
    print(f"after set_budget: {chat.stats.entries} entries")


if __name__ == "__main__":
    main()
