"""Train the default model's tokenizer: byte-level BPE, digits one by one, with a chat template.

python tokenizer.py --out ../../runs/tokenizer
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import BOS, DATA, END, HERE, load_config, real_dialogues
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from sonic_kv.config import SynthConfig
from sonic_kv.data.synth import generate_dialogues

SPECIAL = [BOS, "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", END]
CHAT_TEMPLATE = (
    "{{ '<|bos|>' }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def texts(config: dict[str, Any], folder: Path) -> Iterator[str]:
    """Message texts: synthetic training dialogues, then real ones."""
    synthetic = generate_dialogues(SynthConfig(dialogues=config["tokenizer"]["synthetic"], seed=1_000_000))
    real = real_dialogues(folder, config["data"]["sources"], config["tokenizer"]["real"])
    for dialogues in (synthetic, real):
        for dialogue in dialogues:
            yield from (message["content"] for message in dialogue["messages"])


def train_tokenizer(config: dict[str, Any], folder: Path) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    # One space before every message, taken off again when decoding: a word is the same token at the
    # start of a reply as inside the sentence it is recalled from.
    tokenizer.normalizer = normalizers.Prepend(" ")
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=config["tokenizer"]["vocab_size"],
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(config, folder), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=END,
        pad_token="<|pad|>",
        extra_special_tokens=["<|system|>", "<|user|>", "<|assistant|>"],
        chat_template=CHAT_TEMPLATE,
        model_max_length=config["model"]["max_position_embeddings"],
        clean_up_tokenization_spaces=False,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--config", type=Path, default=HERE / "config.toml")
    arguments = parser.parse_args()
    train_tokenizer(load_config(arguments.config), arguments.data).save_pretrained(arguments.out)
