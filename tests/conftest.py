"""Tiny models are fastest on one thread; two would only wait for each other."""

import torch

torch.set_num_threads(1)
