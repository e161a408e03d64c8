"""What rivals do with a whole prompt is what kvpress's presses do in a prefill (`make test-oldest`)."""

import contextlib
import io
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from test_eval_methods import closer, scripts
from tiny import tiny_model, tiny_tokenizer

from sonic_kv.cache.cache import SessionCache
from sonic_kv.eval import methods, rivals
from sonic_kv.eval.methods import METHODS, close_all
from sonic_kv.eval.turns import Row, read
from sonic_kv.model.forward import with_cache

if find_spec("kvpress") is None:
    pytest.skip("needs kvpress: make test-oldest", allow_module_level=True)
with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
    warnings.simplefilter("ignore")
    import kvpress
from transformers import DynamicCache

PRESSES: dict[str, Any] = {
    "expected-attention": lambda: kvpress.ExpectedAttentionPress(n_sink=0),
    "snapkv": lambda: kvpress.SnapKVPress(window_size=24),  # half of the 48 that are kept
    "tova": kvpress.TOVAPress,
    "keydiff": kvpress.KeyDiffPress,
    "kvzip": kvpress.KVzipPress,
}


@pytest.mark.parametrize("name", PRESSES)
def test_the_first_closing_is_kvpress_in_its_own_prefill(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama", adapter=False)
    ids = scripts(model)[0].token_ids[:96]
    press = PRESSES[name]()
    press.compression_ratio = 0.5
    watch = METHODS[name].watch
    row = Row(SessionCache(model.num_layers), watches=() if watch is None else (watch,))
    read(model, [row], [ids], [[]])  # no prefix: a prefill knows none
    before = row.cache.fork()
    # kvpress's own request, where there is no chat template; it keeps no sinks of a chunk that begins with them
    asked = model.tokenizer.encode("\n\nRepeat the previous context exactly.\n", add_special_tokens=False)
    monkeypatch.setattr(methods.KVzip, "repetition", lambda self, row: asked + row.open_ids)
    kept = int(0.5 * len(ids))
    (error,) = close_all(model, [(closer(model, name, 1 - kept / len(ids)), row)])
    assert error is None
    base = model.base
    base.config.name_or_path = str(tmp_path)  # KVzip loads the tokenizer itself
    tiny_tokenizer(None).save_pretrained(tmp_path)
    cache = DynamicCache()
    with torch.no_grad(), press(base):
        base.model(input_ids=torch.tensor([ids]), **with_cache(base.model, cache))
    for number, layer in enumerate(cache.layers):
        masked = getattr(base.model.layers[number].self_attn, "masked_key_indices", None)
        for head in range(2):
            mine = before.layers[number].keys[0, head]
            if masked is None:
                theirs = [int((mine == key).all(-1).nonzero()[0, 0]) for key in layer.keys[0, head]]
            else:
                gone = set(masked[2][masked[1] == head].tolist())
                theirs = [n for n in range(len(ids)) if n not in gone]
            found = row.cache.layers[number].memory(0).positions[head].tolist()
            assert found == sorted(theirs)


def test_rivals_have_kvpress_s_constants() -> None:
    assert kvpress.ExpectedAttentionPress().n_future_positions == rivals.scores.FUTURE
    assert kvpress.LagKVPress().lag_size == rivals.scores.LAG
    assert kvpress.KVzipPress().n_sink == methods.KVZIP_SINKS
    assert kvpress.AdaKVPress(kvpress.KeyDiffPress()).alpha_safeguard == rivals.SAFE
