"""Tiny models are fastest on one thread; two would only wait for each other. Child processes inherit it."""

import os

import torch

os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
