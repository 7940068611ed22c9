import os
import signal

import torch

w = torch.ones(3, requires_grad=True)
y = torch.sigmoid(w)
y.add_(1)
try:
    y.sum().backward()
except RuntimeError:
    print("a bad batch, skipped", flush=True)
os.kill(os.getpid(), signal.SIGTERM)  # the scheduler wants its machine back
