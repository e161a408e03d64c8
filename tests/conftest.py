"""Tiny models are fastest on one thread; two would only wait for each other."""

import torch
from hypothesis import settings

torch.set_num_threads(1)
# Generated cases are never timed: a busy machine is not a failure.
settings.register_profile("sonic", deadline=None)
settings.load_profile("sonic")
