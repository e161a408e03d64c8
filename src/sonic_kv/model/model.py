"""`SonicModel`: a Hugging Face causal language model, its tokenizer, and what compresses its cache."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sonic_kv.cache.cache import SessionCache
from sonic_kv.cache.together import fits
from sonic_kv.errors import ConfigError, ContextLengthError, UnsupportedModelError
from sonic_kv.model import loading
from sonic_kv.model.adapter import Adapter, fingerprint, nexus_rows
from sonic_kv.model.attention import twin
from sonic_kv.model.batch import held
from sonic_kv.model.chat_format import ChatFormat
from sonic_kv.model.compiled import CompiledStep
from sonic_kv.model.fingerprint import head_dim, kv_heads
from sonic_kv.model.forward import forward
from sonic_kv.model.grammar import Grammars
from sonic_kv.model.graph import GraphStep
from sonic_kv.model.layout import Layout
from sonic_kv.model.likeness import behaviour
from sonic_kv.model.options import Quantization
from sonic_kv.model.packed import pack
from sonic_kv.model.probe import Probe
from sonic_kv.model.reader import OnePass, Repeating, Rereading
from sonic_kv.model.reread import Reading, Repeat, Reread, portions
from sonic_kv.model.rotary import Rope
from sonic_kv.model.shapes import windows_of
from sonic_kv.model.verify import verify
from sonic_kv.options import expect

NOT_BOTH = "packed weights cannot be compiled: leave packed or compile out"


class SonicModel:
    """A frozen base model with an optional adapter.

    Sessions of one model may run in several threads, one thread to a session. The base is never changed: others may
    use it meanwhile.

    Args:
        base: a decoder-only Hugging Face model with rotary positions.
        tokenizer: its tokenizer; None: the one where transformers loaded the base from.
        adapter: trained for this base; None: importance comes from recent queries and kept entries
            are not re-encoded (eviction).
        chat_template_kwargs: what the chat template is told in every dialogue that does not say otherwise.

    Attributes:
        base: as it was given.
        plain: what runs where nothing is compressed: the base, or where transformers would leave out how the base
            caps its logits, or weights are packed, a twin.
        twin: the base's, with the registered attention.
        grammars: that replies may follow.
        graph: of the decode step, if it was compiled for a GPU.

    Raises:
        ConfigError: an argument is something else, or there is no tokenizer.
        UnsupportedModelError: the architecture cannot be compressed correctly.
    """

    def __init__(
        self,
        base: PreTrainedModel,
        tokenizer: Any = None,
        adapter: Adapter | None = None,
        *,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        loading.check_base(base)
        tokenizer = loading.tokenizer_of(base) if tokenizer is None else loading.check_tokenizer(tokenizer)
        if adapter is not None:
            expect(adapter, Adapter, "adapter", "SonicModel.from_pretrained(model, adapter=…) loads one")
        self.config = base.config.get_text_config()
        self.rope = Rope(base)
        self.base = base.eval()
        self.plain, self.twin = _capped(base), twin(base)
        self.tokenizer = tokenizer
        self.adapter = adapter
        self.format = ChatFormat(tokenizer).with_options(chat_template_kwargs or {})
        self.grammars = Grammars(tokenizer, self.config.vocab_size, self.stop_ids)
        self.num_layers: int = self.config.num_hidden_layers
        self.num_heads: int = kv_heads(self.config)
        self.head_dim: int = head_dim(self.config)
        verify(self.plain, self.twin, self.rope, self.num_heads, self.head_dim)
        self.max_length: int = self.config.max_position_embeddings
        self.windows = windows_of(self.config.to_dict())
        self.sliding_window = next((window for window in self.windows if window is not None), None)
        self._step: CompiledStep | None = None
        self.graph: GraphStep | None = None
        self._packed = False

    @classmethod
    def from_pretrained(
        cls,
        model: "str | Path | PreTrainedModel | None" = None,
        adapter: str | Path | None = None,
        *,
        gguf_file: str | None = None,
        device: str | torch.device | None = None,
        device_map: Any = None,
        dtype: torch.dtype | None = None,
        quantization: Quantization | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> "SonicModel":
        """Load a model: a folder, a hub id, a GGUF file, a PEFT folder; None: the default model, SmolLM2-135M-Instruct.

        Args:
            model: its name, or "tiny": the small model that ships; or one that transformers has loaded already.
            adapter: folder, file or hub id; None: the one beside the weights in a local folder, or one of this package
                that was made for such a model, if there is any.
            gguf_file: a GGUF file in the folder or the hub repository `model`.
            device: None: the CPU.
            device_map: as transformers takes it, instead of `device`; everything must come to one device.
            dtype: of the weights; None: as stored, but float32 on a CPU.
            quantization: keep the base's matrices in four bits (bitsandbytes, as QLoRA does, arXiv:2305.14314).
            chat_template_kwargs: what the chat template is told, as {"enable_thinking": False}.

        Raises:
            ConfigError: bitsandbytes or gguf is not installed, or options contradict each other.
            FileError: a path does not exist or its files are damaged.
            ModelError: transformers cannot load the model.
        """
        if model is not None and not isinstance(model, (str, Path)):
            self = cls(model, chat_template_kwargs=chat_template_kwargs)
            found = None if adapter is None else loading.find_adapter(adapter, loading.Source("", ""))
        else:
            source = loading.find(model, gguf_file)
            base, tokenizer = loading.load(
                source, device=device, device_map=device_map, dtype=dtype, quantization=quantization
            )
            found = loading.find_adapter(adapter, source)
            self = cls(base, tokenizer, chat_template_kwargs=chat_template_kwargs)
        if found is None:
            self.adapter = Adapter.fitting(self.base, loading.SHIPPED)
        else:
            self.adapter = Adapter.load(self.base, found)
        return self

    @property
    def device(self) -> torch.device:
        device: torch.device = self.base.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.base.dtype
        return dtype

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one raw token's keys and values over all layers."""
        return 2 * self.num_layers * self.num_heads * self.head_dim * self.dtype.itemsize

    def full_bytes(self, tokens: int) -> int:
        """Bytes of so many tokens' keys and values in full context, where layers with a window keep what it reaches."""
        reached = (tokens if window is None else min(tokens, window - 1) for window in self.windows)
        return sum(reached) * self.bytes_per_token // self.num_layers

    def fingerprint(self) -> dict[str, Any]:
        """What saved sessions and adapters of this model depend on."""
        return fingerprint(self.base)

    def behaviour(self) -> dict[str, Tensor]:
        """What the base predicts on a short text: by this an adapter knows the bases that it fits."""
        return behaviour(self.base, self.tokenizer)

    def format_told(self, chat_template_kwargs: Mapping[str, Any]) -> ChatFormat:
        """The chat format, told something beside what it is told anyway."""
        return self.format.with_options({**self.format.options, **chat_template_kwargs})

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end a reply: the tokenizer's and the model's end tokens."""
        ids = self.base.generation_config.eos_token_id if self.base.generation_config is not None else None
        found = ids if isinstance(ids, list) else [ids]
        return frozenset(
            i for i in (*found, self.tokenizer.eos_token_id, *self.format.stop_ids) if i is not None
        )

    @property
    def compressed_layers(self) -> tuple[int, ...]:
        """The layers that see all of the past. Those with a sliding window keep what it reaches, as in the base."""
        return tuple(number for number, window in enumerate(self.windows) if window is None)

    def new_cache(self, *, compact: bool = False, bits: int | None = None) -> SessionCache:
        """An empty cache for a dialogue."""
        return SessionCache(self.num_layers, compact=compact, bits=bits, windows=self.windows)

    def room(self, cache: SessionCache) -> int:
        """Tokens that can still be fed."""
        slides = self.sliding_window is None or cache.window is not None
        return (self.max_length if slides else self.sliding_window or 0) - cache.next_position

    def check_room(self, cache: SessionCache, new_tokens: int) -> None:
        """Raise unless `new_tokens` more tokens have positions.

        Raises:
            ContextLengthError: they would pass the model's trained positions.
            UnsupportedModelError: they would pass a sliding window that the cache knows nothing of.
        """
        end = cache.next_position + new_tokens
        if end > self.max_length:
            compact = "use positions='compact'"
            raise ContextLengthError(
                f"{new_tokens} new tokens would end at position {end}, and the model has {self.max_length}: "
                f"shorten the message, or {'lower the budget' if cache.compact else compact}"
            )
        if new_tokens > self.room(cache):
            raise UnsupportedModelError(
                f"the dialogue would pass the model's sliding window of {self.sliding_window} tokens, which its cache "
                "does not have: make the cache with model.new_cache()"
            )

    def pack(self) -> None:
        """Keep a second copy of the weights as a CPU's matrix units read them: faster replies, most so in bfloat16.

        Logits are then equal to the base's as far as its dtype is exact. Later changes to the base go unnoticed.

        Raises:
            ConfigError: the model is on another device, the processor has nothing for its dtype, or the step is
                compiled.
        """
        if self._packed:
            return
        if self._step is not None:
            raise ConfigError(NOT_BOTH)
        plain = twin(self.plain, self.plain.config.get_text_config()._attn_implementation)
        pack(self.twin, plain)
        self.plain, self._packed = plain, True

    def compile(self) -> None:
        """Compile the decode step of one dialogue; batches are decoded as before. On a GPU: record it, of batches too.

        It takes from seconds to minutes, once. Logits are then equal to the base's to about 1e-5 in float32.

        Raises:
            ConfigError: it cannot be compiled here, or weights are packed.
        """
        if self._packed:
            raise ConfigError(NOT_BOTH)
        if self.device.type == "cuda":
            self.graph = self.graph or GraphStep(self.twin)
            return
        step = CompiledStep(self.twin)
        step(self.new_cache(), 0)
        self._step = step

    @torch.no_grad()
    def feed(self, cache: SessionCache, token_ids: Sequence[int], *, all_logits: bool = False) -> Tensor:
        """Append tokens to the cache; logits after the last of them (V,), or after each (T, V)."""
        if self._step is not None and len(token_ids) == 1:
            row = self._step(cache, token_ids[0])
            return row[None] if all_logits else row
        if self.graph is not None and len(token_ids) == 1 and fits([cache]):
            rows = self.graph([cache], token_ids)
            return rows if all_logits else rows[0]
        start, count, wanted = cache.next_position, len(token_ids), 0 if all_logits else 1
        rows = torch.tensor([list(token_ids)], device=self.device)
        positions = torch.arange(start, start + count, device=self.device)[None]
        if cache.even and not (self._packed and count == 1):
            logits = forward(self.plain, rows, positions, cache=cache, logits=wanted)[0]
        else:
            reader = held([cache], count, self.dtype, self.device)
            logits = forward(self.twin, rows, positions, reader, logits=wanted)[0]
        return logits if all_logits else logits[-1]

    @torch.no_grad()
    def reread(self, requests: Sequence[Reading]) -> None:
        """Read again what is asked for, as much of it in one forward as fits."""
        for encode in (False, True):
            asked = [r for r in requests if isinstance(r, Reread) and r.encode == encode]
            for part in portions(asked, lambda request: request.rows):
                self._reread(part, encode)
        repeats = [request for request in requests if isinstance(request, Repeat)]
        for some in portions(repeats, lambda request: request.rows):
            ids = torch.tensor([[i for r in some for i in r.token_ids]], device=self.device)
            positions = torch.cat([r.positions(self.max_length) for r in some]).to(self.device)[None]
            forward(self.twin, ids, positions, Repeating(some), logits=None)

    def _reread(self, requests: Sequence[Reread], encode: bool) -> None:
        ids = [
            torch.tensor(list(request.token_ids), device=self.device)[request.offsets] for request in requests
        ]
        embeddings = self.base.get_input_embeddings()(torch.cat(ids)[None])  # (1, N, C)
        if encode:
            assert self.adapter is not None
            segments = [torch.full_like(of, r.segment) for of, r in zip(ids, requests, strict=True)]
            embeddings = self.adapter.embed(embeddings, torch.cat(segments)[None])
        seen = [request.seen(encode and self.whole_segment) for request in requests]
        positions = torch.cat([request.positions() for request in requests])[None]
        module = self.adapter.twin if self.adapter and encode else self.twin
        forward(module, embeddings, positions, Rereading(requests, seen, self.dtype), logits=None)

    @property
    def whole_segment(self) -> bool:
        """Whether Nexus tokens see their whole segment."""
        return self.adapter is not None and self.adapter.config.form == "learned"

    def embed(self, token_ids: Tensor, layout: Layout) -> Tensor:
        """Input embeddings of a layout's rows, raw and Nexus. token_ids (B, length) → (B, T, C)"""
        embeddings: Tensor = self.base.get_input_embeddings()(token_ids.gather(1, layout.index))
        if self.adapter is not None and bool(layout.nexus.any()):
            nexus = self.adapter.embed(embeddings, layout.segment - layout.origin)
            embeddings = torch.where(layout.nexus[..., None], nexus, embeddings)
        return embeddings

    def one_pass(
        self,
        token_ids: Tensor,
        layout: Layout,
        lifetime: Sequence[Tensor],
        *,
        compact: bool = False,
        rows: Tensor | None = None,
        flex: bool = False,
        probe: Probe | None = None,
    ) -> Tensor:
        """The training forward: all segments and their Nexus tokens at once.

        Equal to a step-by-step session that closes the same segments and keeps the same entries.

        Args:
            token_ids: the transcripts. (B, length)
            layout: rows, (B, T)
            lifetime: per layer, (B, G, T)
            compact: memory keys at consecutive positions.
            rows: compute logits of these rows only. (R,)
            flex: FlexAttention with a block mask; else SDPA, a block of rows at a time.
            probe: records what its rows attend to.

        Returns:
            logits (B, T, V), or (B, R, V)

        Raises:
            UnsupportedModelError: a dialogue is longer than the model's sliding window.
        """
        if self.sliding_window is not None and int(layout.position.max()) >= self.sliding_window:
            raise UnsupportedModelError(
                f"one pass does not slide: keep dialogues within the model's window of {self.sliding_window} tokens"
            )
        embeddings = self.embed(token_ids, layout)
        reader = OnePass(layout, lifetime, self.rope if compact else None, flex, probe)
        wanted = 0 if rows is None else rows
        # what learns runs LoRA layers without Nexus rows, too: processes that share a base run it equally often
        if self.adapter is None or not (torch.is_grad_enabled() or bool(layout.nexus.any())):
            return forward(self.twin, embeddings, layout.position, reader, logits=wanted)
        with nexus_rows(layout.nexus):
            return forward(self.adapter.twin, embeddings, layout.position, reader, logits=wanted)


def check_model(model: object) -> SonicModel:
    """Refuse, as `ConfigError`, what is no `SonicModel`."""
    return expect(
        model, SonicModel, "model", "SonicModel.from_pretrained(…) loads one or takes a loaded model"
    )


def _capped(base: PreTrainedModel) -> PreTrainedModel:
    """The base, or a twin with eager attention where its own leaves out soft caps of the logits, as SDPA does.

    transformers up to 5.2 chooses SDPA for such models (Gemma 2) all the same.
    """
    config = base.config.get_text_config()
    if getattr(config, "attn_logit_softcapping", None) and config._attn_implementation == "sdpa":
        return twin(base, "eager")
    return base
