"""What holds for all tests: they run on one thread, and never ask what the processor can do."""

import os
import sys

import pytest
import torch

# Tiny models are fastest on one thread; two would only wait for each other. Child processes inherit it.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


supported = torch.cpu._is_avx512_bf16_supported


def _asked() -> bool:
    if sys._getframe(1).f_globals["__name__"].startswith("torch."):  # what it compiles is its own matter
        return supported()
    raise AssertionError("this test depends on the processor: say bf16=True or bf16=False")


@pytest.fixture(autouse=True)
def any_processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test fail everywhere whose products would be in bf16 where there are instructions for it."""
    if "processor" not in request.keywords:
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", _asked)
