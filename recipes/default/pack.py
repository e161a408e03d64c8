"""Pack the corpus for pretraining: a tokenizer, and the training side of the real data as token ids.

    python pack.py --scale cpu --out ../../runs/packed

Writes `tokenizer/` (byte-level BPE, digits one by one, with a chat template), `ids.npy.xz` (uint16, every
document opens with `<|bos|>`) and `words.txt` (words of the dialogues, which stand in for listed values of
synthetic ones). Pretraining reads nothing else, so that it runs where the data is not.
"""

import argparse
import lzma
import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from common import BOS, DATA, END, HERE, SCALES, load_config, real_dialogues, render
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from sonic_kv.data.options import SynthConfig
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
    most = config["tokenizer"]["real"]
    sources = {name: min(count, most) for name, count in config["data"]["sources"].items()}
    real = real_dialogues(folder, sources)
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


def pack(config: dict[str, Any], folder: Path, out: Path, trained: Path | None) -> dict[str, int]:
    """Write the packed corpus, with a `trained` tokenizer or a new one; returns tokens by source."""
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(trained) if trained else train_tokenizer(config, folder)
    tokenizer.save_pretrained(out / "tokenizer")
    words: Counter[str] = Counter()
    parts: list[np.ndarray] = []
    tokens: dict[str, int] = {}
    for source, count in config["data"]["sources"].items():
        texts = []
        for dialogue in real_dialogues(folder, {source: count}):
            texts.append(render(dialogue["messages"]))
            for message in dialogue["messages"]:
                words.update(re.findall(r"\b[a-z]{3,12}\b", message["content"]))
        ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
        parts += [np.array(one, dtype=np.uint16) for one in ids]
        tokens[source] = sum(map(len, ids))
        print(f"{source}: {len(ids):,} documents, {tokens[source]:,} tokens", flush=True)
    temporary = out / "ids.tmp"
    with lzma.open(temporary, "wb", preset=4) as file:
        np.save(file, np.concatenate(parts))
    temporary.replace(out / "ids.npy.xz")
    common = [word for word, count in words.most_common() if count >= 5][config["data"]["skip_words"] :]
    spelled = invented_words(tokenizer, random.Random(0), len(common))
    (out / "words.txt").write_text("\n".join((*common, *spelled)))
    return tokens


def invented_words(tokenizer: PreTrainedTokenizerFast, rng: random.Random, count: int) -> list[str]:
    """Words of two or three tokens drawn evenly: a token that is never recalled is not learned to be."""
    pieces = [token for token in tokenizer.get_vocab() if re.fullmatch("Ġ?[a-z]+", token)]
    first, later = ([p for p in sorted(pieces) if p.startswith("Ġ") == start] for start in (True, False))
    found: list[str] = []
    while len(found) < count:
        drawn = [rng.choice(first), *rng.choices(later, k=rng.choice((1, 1, 2)))]
        word = "".join(drawn)[1:]
        if len(word) <= 12 and tokenizer.tokenize(word) == drawn:
            found.append(word)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--config", type=Path, default=HERE / "config.toml")
    parser.add_argument("--scale", choices=SCALES, default="cpu")
    parser.add_argument("--tokenizer", type=Path, help="use this one instead of training one")
    arguments = parser.parse_args()
    config = load_config(arguments.config, arguments.scale)
    found = pack(config, arguments.data, arguments.out, arguments.tokenizer)
    size = (arguments.out / "ids.npy.xz").stat().st_size
    print(f"{sum(found.values()):,} tokens, {size / 1e6:.1f} MB")
