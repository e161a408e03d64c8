"""vLLM decodes over an exported session: a connector that loads its entries as KV of its P placeholder tokens.

`docs/guides/vllm.md` says how both classes are given to vLLM. A request names its session by
`kv_transfer_params={"sonic_session": digest}`. Written and tested against vLLM 0.32.0.
"""

import asyncio
import json
import secrets
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from sonic_kv.cache.export import Export, read_export
from sonic_kv.errors import ConfigError, FileError, MessageError, SonicError
from sonic_kv.model.fingerprint import check_fingerprint, checkpoint_fingerprint, describe

try:
    from vllm.distributed.kv_transfer.kv_connector.v1.base import (
        KVConnectorBase_V1,
        KVConnectorMetadata,
        KVConnectorRole,
        KVConnectorTransferResults,
    )
    from vllm.logger import init_logger
    from vllm.model_executor.layers.attention import Attention
except ImportError as error:
    raise ConfigError("sonic_kv.integrations.vllm needs vLLM: pip install 'sonic-kv[vllm]'") from error

SESSION = "sonic_session"
logger = init_logger(f"vllm.{__name__}")


class Exports:
    """The exports that an engine may load.

    Args:
        config: vLLM's whole configuration. `kv_connector_extra_config` holds "folder", and may hold
            "weights": the fingerprint of the weights, where the checkpoint's files do not yield it.
    """

    def __init__(self, config: Any) -> None:
        extra = config.kv_transfer_config.kv_connector_extra_config
        if "folder" not in extra:
            raise ConfigError('kv_connector_extra_config needs {"folder": …}: where sessions are exported to')
        self.folder, self._weights, self._model = (
            Path(extra["folder"]),
            extra.get("weights"),
            config.model_config,
        )

    @cached_property
    def base(self) -> dict[str, Any]:
        """Fingerprint of the model that vLLM runs."""
        model, config = self._model, self._model.hf_text_config
        if self._weights:
            return describe(config, []) | {"weights": self._weights}
        folder = model.model
        if not Path(folder).is_dir():
            from huggingface_hub import snapshot_download  # vLLM has downloaded it

            patterns = ["model*.safetensors"]
            folder = snapshot_download(
                folder, revision=model.revision, allow_patterns=patterns, local_files_only=True
            )
        return checkpoint_fingerprint(config, folder)

    def admit(self, session: Any, prompt: list[int] | None = None) -> Export:
        """The export of a request, from its header; a prompt of token ids is checked as well.

        Raises:
            FileError: `session` is no digest, or its file is missing or damaged.
            AdapterError: it was made with another model.
            MessageError: the prompt does not begin with its tokens, or has no others.
        """
        export = read_export(self.folder, session)
        check_fingerprint(export.base, self.base, f"session {session}")
        size = len(export.token_ids)
        if prompt is not None and (len(prompt) <= size or prompt[:size] != export.token_ids):
            raise MessageError(
                f"the prompt must be the {size} tokens of session {session}, and at least one new token behind them"
            )
        return export


@dataclass(frozen=True)
class Load:
    """Entries `start` … `stop` − 1 of an export, which go into these blocks of the request."""

    digest: str
    start: int
    stop: int
    block_ids: list[int]

    def blocks(self, block_size: int) -> list[int]:
        """The blocks that hold them."""
        return self.block_ids[self.start // block_size : -(-self.stop // block_size)]

    def slots(self, block_size: int) -> torch.Tensor:
        """Where each of them goes, counted over all blocks. (stop − start,)"""
        position = torch.arange(self.start, self.stop)
        return torch.tensor(self.block_ids)[position // block_size] * block_size + position % block_size


@dataclass(frozen=True)
class Step(KVConnectorMetadata):
    """What the scheduler tells the worker for one step."""

    loads: list[Load]
    refused: set[str]  # ids of requests that fail


class SonicConnector(KVConnectorBase_V1):
    """Loads exported sessions. vLLM makes one for its scheduler and one for its worker.

    A request that cannot have its session fails by itself, with the reason in the log.
    """

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        if len(kv_cache_config.kv_cache_groups) != 1:
            raise ConfigError("the model's layers cache differently (sliding windows, Mamba): not supported")
        if vllm_config.parallel_config.world_size != 1:
            raise ConfigError(
                "tensor and pipeline parallel engines cannot load sessions yet: use data parallel"
            )
        if vllm_config.kv_transfer_config.kv_load_failure_policy != "fail":
            raise ConfigError(
                "sessions need kv_load_failure_policy='fail': their tokens cannot be recomputed"
            )
        self._exports = Exports(vllm_config)
        self._block_size: int = vllm_config.cache_config.block_size
        # scheduler
        if role == KVConnectorRole.SCHEDULER:
            logger.info("sessions from %s, made with %s", self._exports.folder, self._exports.base)
        self._secret = secrets.token_hex(16)
        self._admitted: dict[str, Export | None] = {}  # of a request that names a session; None: refused
        self._loads: list[Load] = []
        self._refused: set[str] = set()
        # worker
        self._failed_requests: set[str] = set()
        self._failed_blocks: set[int] = set()

    # --- scheduler --------------------------------------------------------------------------------

    def on_new_request(self, request: Any) -> None:
        """Check the session, and keep the request's blocks from everyone who has not the same one."""
        params = request.kv_transfer_params
        if not isinstance(params, dict) or SESSION not in params:
            return
        # No client can spell this salt, so nobody else's blocks are found, and nobody finds these.
        request.cache_salt = f"{self._secret} {params[SESSION]!r} {request.cache_salt!r}"
        request.block_hashes.clear()
        request.update_block_hashes()
        sampling = request.sampling_params
        wants_prompt = sampling is not None and (
            sampling.prompt_logprobs is not None or sampling.prompt_logprob_token_ids is not None
        )
        request.skip_reading_prefix_cache = False  # it would skip the session as well
        try:
            if wants_prompt or request.lora_request is not None:
                raise ConfigError("a request with a session cannot ask for prompt_logprobs or a LoRA")
            prompt = request.prompt_token_ids or []
            self._admitted[request.request_id] = self._exports.admit(params[SESSION], prompt)
        except Exception as error:  # whatever it is, the engine must live
            self._admitted[request.request_id] = None
            logger.error("request %s fails: %s", request.request_id, error)

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:
        if request.request_id not in self._admitted:
            return 0, False
        export = self._admitted[request.request_id]
        if export is None:  # claimed as something to be received, which then is not
            return 1, True
        return max(len(export.token_ids) - num_computed_tokens, 0), False

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        if not num_external_tokens:
            return
        export = self._admitted[request.request_id]
        if export is None:
            self._refused.add(request.request_id)
        else:
            stop, block_ids = len(export.token_ids), blocks.get_block_ids()[0]
            self._loads.append(Load(export.digest, stop - num_external_tokens, stop, block_ids))

    def build_connector_meta(self, scheduler_output: Any) -> Step:
        step = Step(self._loads, self._refused)
        self._loads, self._refused = [], set()
        return step

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, None]:
        self._admitted.pop(request.request_id, None)
        return False, None

    # --- worker -----------------------------------------------------------------------------------

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        step = self._get_connector_metadata()
        assert isinstance(step, Step)
        self._failed_requests |= step.refused
        layers = [x for x in forward_context.no_compile_layers.values() if isinstance(x, Attention)]
        for load in step.loads:
            try:
                self._load(load, layers)
            except Exception as error:  # whatever it is, the engine must live
                logger.error("a session cannot be loaded: %s", error)
                self._failed_blocks |= set(load.blocks(self._block_size))

    def _load(self, load: Load, layers: list[Any]) -> None:
        export = read_export(self._exports.folder, load.digest)
        entries = export.load()
        shape = (len(layers), layers[0].num_kv_heads, load.stop, layers[0].head_size)
        if export.shape != shape:
            raise FileError(
                f"session {load.digest} has the shape {export.shape}, and the engine's is {shape}"
            )
        for layer, pair in zip(layers, entries, strict=True):
            cache = layer.kv_cache
            keys, values = (
                part[:, load.start :].transpose(0, 1).to(cache.device, layer.dtype).contiguous()
                for part in pair
            )  # (P − start, G, D)
            # the layer's own operation: backends lay blocks out differently
            layer.impl.do_kv_cache_update(
                layer, keys, values, cache, load.slots(self._block_size).to(cache.device)
            )

    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        failed, self._failed_requests = self._failed_requests, set()
        return KVConnectorTransferResults(finished_recving=failed, failed_recving=failed)

    def get_block_ids_with_load_errors(self) -> set[int]:
        failed, self._failed_blocks = self._failed_blocks, set()
        return failed

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Everything is loaded before a step begins."""

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None:
        """vLLM's own KV is not kept."""

    def wait_for_save(self) -> None:
        """Nothing is saved."""


class SessionCheck:
    """ASGI middleware for vLLM's server: a request that the connector would fail is answered 400, with the reason."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self._exports: Exports | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        from starlette.requests import Request
        from starlette.responses import JSONResponse

        body = await Request(scope, receive).body()
        try:
            await asyncio.to_thread(self._check, scope["app"].state, body)
        except SonicError as error:
            answer = {"message": str(error), "type": "BadRequestError", "param": SESSION, "code": 400}
            await JSONResponse({"error": answer}, status_code=400)(scope, receive, send)
            return

        read = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Any:
            return read.pop() if read else await receive()

        await self.app(scope, replay, send)

    def _check(self, state: Any, body: bytes) -> None:
        try:
            request = json.loads(body)
            params = request["kv_transfer_params"]
            session = params[SESSION]
        except (ValueError, KeyError, TypeError):  # no request with a session: vLLM's business
            return
        if self._exports is None:
            self._exports = Exports(state.vllm_config)
        prompt = params.get("prompt_token_ids") or request.get("prompt")
        ids = isinstance(prompt, list) and all(isinstance(token, int) for token in prompt)
        self._exports.admit(session, prompt if ids else None)
        if request.get("prompt_logprobs") is not None:
            raise ConfigError("a request with a session cannot ask for prompt_logprobs")
