"""Compress inside `generate` of transformers: `python generate.py [PATH_OR_HUB_ID]`."""

import sys
from typing import Any

from sonic_kv import Budget, SonicModel, sonic

HISTORY = [
    {"role": "user", "content": "I have two cats, Nils and Frida. Frida is afraid of the vacuum cleaner."},
    {"role": "assistant", "content": "Poor Frida! I will remember both of them."},
    {"role": "user", "content": "On Tuesdays I play the cello in a quartet, and on Thursdays I swim."},
    {"role": "assistant", "content": "That sounds lovely. I hope that you have time for both."},
    {"role": "user", "content": "Which of my cats is afraid, and of what?"},
]


def main(*names: str) -> None:
    model = SonicModel.from_pretrained(*names)
    base: Any = model.base  # a model and a tokenizer of transformers, as you have them
    tokenizer: Any = model.tokenizer
    prompt = tokenizer.apply_chat_template(
        HISTORY, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    for ratio in (0.0, 0.5, 0.8):
        # without an adapter: sonic(base, Budget(…), tokenizer=tokenizer)
        with sonic(model, Budget(compression_ratio=ratio)) as inside:
            found = base.generate(**prompt, max_new_tokens=40, do_sample=False)
            reply = tokenizer.decode(found[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
            print(f"{ratio:.0%} removed, {inside.stats.entries} entries: {reply}")


if __name__ == "__main__":
    main(*sys.argv[1:])
