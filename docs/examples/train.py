import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.up, self.down = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x):
        h = torch.sigmoid(self.up(x))
        return self.down(h), h


def mask_padding(h, length):
    h[:, length:] = 0.0


def train(steps=3):
    torch.manual_seed(0)
    model = nn.ModuleList(Block(8) for _ in range(2))
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(steps):
        x = torch.randn(4, 8)
        for block in model:
            x, h = block(x)
            mask_padding(h, length=6)
        optimizer.zero_grad()
        x.pow(2).mean().backward()
        optimizer.step()


train()
