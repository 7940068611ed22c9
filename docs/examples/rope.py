import torch
from torch import nn


class Attention(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.query = nn.Linear(width, width)
        self._tables = {}

    def table(self, length, width):
        if length not in self._tables:
            angles = torch.arange(length)[:, None] / 10 ** torch.linspace(0, 1, width)
            self._tables[length] = torch.cos(angles)
        return self._tables[length]

    def forward(self, x):
        return self.query(x) * self.table(*x.shape)


def make_model():
    return Attention().eval(), (torch.randn(16, 8),)
