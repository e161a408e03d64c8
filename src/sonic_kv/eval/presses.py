"""kvpress's presses, driven turn by turn.

kvpress compresses once, in the prefill of an empty cache. Here `press.compress` is called by our own loop
whenever a segment closes, on the whole cache as it stands: prefix, what earlier closings left, and the
raw open segment. What a press needs beside keys and values is what the forwards over those turns really
had: attention weights, hidden states. The press decides alone, but for two rules that hold for everyone:
prefix entries are not up for choice, and neither are entries that were dropped before.

kvpress is imported when a press is made, and not before: importing it wraps transformers' attention functions.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from sonic_kv.compress.options import SessionConfig
from sonic_kv.errors import ConfigError
from sonic_kv.eval.methods import SINKS, Method
from sonic_kv.eval.turns import WINDOW, Row
from sonic_kv.model.model import SonicModel

INSTALL = "kvpress, in an environment of its own: pip install 'sonic-kv[eval]'"
LAG = 128  # kvpress's own lag_size
CHUNK_TAIL = 8  # kvpress's own prev_postfix_size: tokens that KVzip shows of the chunk before
PYRAMID = 20  # kvpress's own beta: the last layer's share is 1 / beta of the mean


@dataclass(frozen=True)
class Closing:
    """The cache that a press is given: entries per layer and KV head."""

    prefix: int
    stored: int
    open: int
    target: int  # to keep, the prefix not counted


class Press(Method):
    """A press of kvpress."""

    def __init__(self, model: SonicModel, ratio: float | None, config: SessionConfig) -> None:
        super().__init__(model, ratio, config)
        self._library = _kvpress()
        decoder = model.base.get_decoder()
        self._modules = [layer.self_attn for layer in decoder.layers]
        self._rotary = decoder.rotary_emb

    @classmethod
    def missing(cls, model: SonicModel) -> str | None:
        if find_spec("kvpress") is None:
            return INSTALL
        try:
            _kvpress()
        except ConfigError as error:
            return str(error)
        return None

    def build(self, library: Any, closing: Closing) -> Any:
        """The press for one closing."""
        raise NotImplementedError

    def ratio(self, closing: Closing) -> float:
        """The press's `compression_ratio` with which it keeps prefix and target."""
        # presses keep int((1 - ratio) * stored)
        return 1.0 - (closing.prefix + closing.target + 0.5) / closing.stored

    def attentions(self, row: Row, layer: int) -> Tensor | None:
        """Attention weights, if the press is to have them. (1, H or G, Q, S)"""
        return None

    def close(self, row: Row, target: int) -> None:
        closing = Closing(row.cache.lengths.prefix, row.cache.stored, row.cache.open_length, target)
        present = [row.present(layer) for layer in range(self.model.num_layers)]
        if sum(int(p.sum()) for p in present) <= target * sum(len(p) for p in present):
            row.keep(present)
            return
        press = self.build(self._library, closing)
        press.compression_ratio = self.ratio(closing)
        row.keep([self._compress(press, row, layer, closing) for layer in range(self.model.num_layers)])

    def _compress(self, press: Any, row: Row, layer: int, closing: Closing) -> Tensor:
        """What `press.compress` keeps of memory and open segment in a layer. (G, n + L) bool"""
        module, store = self._modules[layer], row.cache.layers[layer]
        present = row.present(layer)
        owner = press if hasattr(press, "score") else press.press  # the one that is asked for scores
        score, scores = owner.score, list[Tensor]()

        def bounded(*arguments: Any) -> Tensor:
            found: Tensor = score(*arguments).clone()
            found[..., : closing.prefix] = torch.inf
            found[..., closing.prefix :].masked_fill_(~present, -torch.inf)
            scores.append(found)
            return found.clone()

        # presses that only count the queries are not given any hidden states
        hidden = row.hidden[layer] if row.hidden else store.keys.new_empty(1, closing.stored, 0)
        with _lent(module, rotary_emb=self._rotary, masked_key_indices=None):
            owner.score = bounded
            try:
                keys, _ = press.compress(
                    module, hidden, store.keys, store.values, self.attentions(row, layer), {}
                )
            finally:
                del owner.score
            masked = module.masked_key_indices
        if masked is None:
            index = scores[-1].topk(keys.shape[2], dim=-1).indices
            assert torch.equal(keys, store.keys.gather(2, index[..., None].expand_as(keys)))
            kept = torch.zeros_like(scores[-1], dtype=torch.bool).scatter(-1, index, True)[0]
        else:
            kept = torch.ones_like(scores[-1], dtype=torch.bool)[0]
            kept[masked[1], masked[2]] = False
        return kept[:, closing.prefix :] & present


@contextlib.contextmanager
def _lent(module: Any, **attributes: Any) -> Iterator[None]:
    """Attributes that kvpress expects on an attention module, for a while and outside its parameters."""
    own = vars(module)
    before = {name: own[name] for name in attributes if name in own}
    own.update(attributes)
    try:
        yield
    finally:
        for name in attributes:
            del own[name]
        own.update(before)


def _kvpress() -> Any:
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            import kvpress
        except Exception as error:  # a transformers that it does not fit
            raise ConfigError(f"kvpress cannot be imported here ({error}): install {INSTALL}") from error
    return kvpress


class StreamingLLMPress(Press):
    default = False  # it keeps what our own keeps

    def build(self, library: Any, closing: Closing) -> Any:
        return library.StreamingLLMPress(n_sink=max(SINKS, closing.prefix))


class KnormPress(Press):
    def build(self, library: Any, closing: Closing) -> Any:
        return library.KnormPress()


class KeyDiffPress(Press):
    def build(self, library: Any, closing: Closing) -> Any:
        return library.KeyDiffPress()


class LagKVPress(Press):
    """The lag is an eighth of the cache: kvpress's own is made for prompts of thousands of tokens, and at
    these lengths it would keep the newest entries and nothing else."""

    def build(self, library: Any, closing: Closing) -> Any:
        lag = max(1, min(LAG, (closing.stored - closing.prefix) // 8))
        return library.LagKVPress(n_sink=closing.prefix, lag_size=lag)


class ExpectedAttentionPress(Press):
    """Query statistics over every token so far, as in a prefill."""

    hidden = True

    def build(self, library: Any, closing: Closing) -> Any:
        return library.ExpectedAttentionPress(n_sink=closing.prefix)


class ObservedAttentionPress(Press):
    """Mean attention over all queries so far that could see the entry.

    kvpress divides the sum over queries by their number, which it takes from the entry's place in an
    uncompressed prompt; it is given a single query row that undoes this division and makes the real one.
    """

    attention = True

    def build(self, library: Any, closing: Closing) -> Any:
        return library.ObservedAttentionPress()

    def attentions(self, row: Row, layer: int) -> Tensor:
        prefix, stored = row.cache.lengths.prefix, row.cache.stored
        device = row.paid[layer].device
        positions = torch.arange(prefix, device=device).expand(self.model.num_heads, -1)
        positions = torch.cat((positions, row.positions(layer)), dim=-1)
        queries = len(row.token_ids) - positions
        return (row.paid[layer] / queries * torch.arange(stored, 0, -1, device=device))[:, :, None]


class WindowPress(Press):
    """Presses that look at the newest queries: with the attention that these really paid."""

    attention = True

    def attentions(self, row: Row, layer: int) -> Tensor:
        return row.window[layer]

    def window(self, closing: Closing) -> int:
        """Queries observed, whose own tokens all stay: at most half of what is kept."""
        return max(1, min(WINDOW, closing.open, closing.target // 2))


class TOVAPress(WindowPress):
    def build(self, library: Any, closing: Closing) -> Any:
        return library.TOVAPress()


class SnapKVPress(WindowPress):
    def build(self, library: Any, closing: Closing) -> Any:
        return library.SnapKVPress(window_size=self.window(closing))


class AdaSnapKVPress(WindowPress):
    """Heads share a layer's entries as they need them; the layer's total is everyone's."""

    def build(self, library: Any, closing: Closing) -> Any:
        return library.AdaKVPress(library.SnapKVPress(window_size=self.window(closing)))


class PyramidKVPress(WindowPress):
    """Layers share the entries, the first gets most; the total is everyone's, but for rounding.

    The window is a twentieth of what is kept, the widest for which kvpress builds its pyramid at all.
    """

    def ratio(self, closing: Closing) -> float:
        return 1.0 - closing.target / (closing.stored - closing.prefix)

    def build(self, library: Any, closing: Closing) -> Any:
        press = library.PyramidKVPress(window_size=max(1, closing.target // PYRAMID), beta=PYRAMID)
        budget = press.get_layer_budget
        press.get_layer_budget = lambda module, size: closing.prefix + budget(module, size - closing.prefix)
        return press


class CriticalSnapKVPress(WindowPress):
    default = False

    def build(self, library: Any, closing: Closing) -> Any:
        return library.CriticalKVPress(library.SnapKVPress(window_size=self.window(closing)))


class CURPress(Press):
    default = False

    def build(self, library: Any, closing: Closing) -> Any:
        return library.CURPress(num_sinks=closing.prefix)


class KVzipPress(Press):
    """Attention that an entry receives at most when the text is repeated (arXiv:2505.23416).

    Of kvpress: the score, the number of sinks, and the allocation over all layers and heads. Ours: a segment is
    one of KVzip's chunks and is repeated when it closes, over what is left of the chunks before it; the request
    is a message of the user. An entry keeps the score of its own chunk, as in KVzip. The repetition is a forward
    of its own, longer than the segment, which `seconds` includes.
    """

    @classmethod
    def missing(cls, model: SonicModel) -> str | None:
        if getattr(model.config, "attn_logit_softcapping", None) or "gemma3" in model.config.model_type:
            return "a model that kvpress's KVzip can score (no Gemma)"
        return super().missing(model)

    def build(self, library: Any, closing: Closing) -> Any:
        logger = logging.getLogger("kvpress.presses.kvzip_press")  # warns of its cost at every closing
        before = logger.disabled
        logger.disabled = True
        try:
            return library.KVzipPress()
        finally:
            logger.disabled = before

    def request(self, row: Row) -> list[int]:
        """Tokens that ask for the open segment, up to where its repetition begins."""
        form, first = self.model.format, not row.cache.lengths.segment_starts
        if first:
            return form.user("Repeat the previous context exactly.") + form.generation_prompt()
        text = "Repeat the part of the previous context exactly, starting with"
        before = row.token_ids[: row.cache.lengths.closed]
        return form.user(text) + form.generation_prompt() + before[-CHUNK_TAIL:]

    def reading(self, row: Row, target: int) -> tuple[Row, list[int]]:
        reader = row.fork(entered=True)
        reader.hidden = []  # of the repetition alone
        return reader, self.request(row) + row.open_ids

    def close(self, row: Row, target: int) -> None:
        closing = Closing(row.cache.lengths.prefix, row.cache.stored, row.cache.open_length, target)
        press = self.build(self._library, closing)
        scores = self._scores(press, row, closing)
        present = torch.stack([row.present(layer) for layer in range(self.model.num_layers)])
        best = scores.masked_fill(~present, -torch.inf).flatten().argsort(descending=True, stable=True)
        count = min(target * self.model.num_layers * self.model.num_heads, int(present.sum()))
        kept = torch.zeros_like(best, dtype=torch.bool).scatter(0, best[:count], True).view_as(present)
        row.keep(list(kept), list(scores))

    def _scores(self, press: Any, row: Row, closing: Closing) -> Tensor:
        """Of memory, as stored, and of the open segment, new. (layers, G, n + L)"""
        reader = row.aside
        assert reader is not None
        start, end = row.cache.next_position, reader.cache.next_position
        press.start_idx, press.end_idx, press.context_length = (
            row.cache.lengths.prefix + row.cache.lengths.memory,
            closing.stored,
            closing.stored,
        )
        shape = (self.model.num_layers, 1, self.model.num_heads, closing.stored)
        press.score_val = torch.zeros(shape, dtype=self.model.dtype, device=self.model.device)
        positions = torch.arange(start, end, device=self.model.device)[None]
        for module, layer, hidden in zip(self._modules, reader.cache.layers, reader.hidden, strict=True):
            given = {"position_embeddings": self._rotary(hidden, positions)}
            press.score_kvzip(module, hidden, layer.keys, layer.values, None, given)
        fresh = press.score_val[:, 0, :, closing.prefix :].float()
        scores = []
        for number in range(self.model.num_layers):
            # those of the open segment are 0 in the one, memory's in the other
            found = row.scores(number) + fresh[number]
            scores.append(found.masked_fill(row.positions(number) < press.n_sink, torch.inf))
        return torch.stack(scores)


PRESSES: dict[str, type[Method]] = {
    "kvpress-streaming-llm": StreamingLLMPress,
    "observed-attention": ObservedAttentionPress,
    "snapkv": SnapKVPress,
    "tova": TOVAPress,
    "knorm": KnormPress,
    "expected-attention": ExpectedAttentionPress,
    "keydiff": KeyDiffPress,
    "lagkv": LagKVPress,
    "pyramidkv": PyramidKVPress,
    "adakv-snapkv": AdaSnapKVPress,
    "critical-snapkv": CriticalSnapKVPress,
    "cur": CURPress,
    "kvzip": KVzipPress,
}
