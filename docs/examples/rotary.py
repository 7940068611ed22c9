import torch
from torch import nn

torch.manual_seed(0)


class Rotary(nn.Module):
    def __init__(self):
        super().__init__()
        self._cache = {}

    def forward(self, length):
        if length not in self._cache:
            angles = torch.arange(length)[:, None] / 100.0
            self._cache[length] = angles.cos()
        return self._cache[length]


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.rope, self.query = Rotary(), nn.Linear(4, 4)

    def forward(self, x):
        return self.query(x) * self.rope(len(x))


@torch.inference_mode()
def validate(model, x):
    return model(x).pow(2).mean()


model, x = Attention(), torch.randn(16, 4)
validate(model, x)
model(x).sum().backward()
