"""A policy of your own: which entries of the past are kept is one method.

Here an entry counts by the size of its value in comparison with the others of its head, and sinks stay.
"""

from torch import Tensor

from sonic_kv import Budget, ChatSession, Policy, SonicModel
from sonic_kv.compress.policies import Closing

FACTS = ["My sister Ada lives in Oslo.", "The code of the garage door is 4711."]


class LargeValues(Policy):
    """Keeps entries whose values are large."""

    def scores(self, closing: Closing) -> list[Tensor]:
        found = []
        for layer in closing.layers:
            size = closing.values(layer).norm(dim=-1)  # (G, n + L)
            size = size / size.mean(-1, keepdim=True)
            found.append(size.masked_fill(closing.positions(layer) < 4, 100.0))
        return found


def main() -> None:
    chat = ChatSession(SonicModel.from_pretrained(), Budget(compression_ratio=0.5), policy=LargeValues())
    for text in (*FACTS, "Where does Ada live?"):
        print(f"user:      {text}\nassistant: {chat.send(text).text}")
    print(f"{chat.stats.entries} entries for {chat.stats.logical_tokens} tokens")


if __name__ == "__main__":
    main()
