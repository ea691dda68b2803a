import os

import torch

from vgs_rl.evaluation import evaluate

torch.set_num_threads(1)
# Tianshou compiles for seven seconds in each process what tests call a few times, and POT imports
# every array library that is installed.
os.environ.setdefault("NUMBA_DISABLE_JIT", "1")
os.environ.setdefault("POT_BACKEND_DISABLE_JAX", "1")
evaluate.SINKHORN_SAMPLES = 400  # 2,000 take seconds; the metric has tests of its own
