import torch
from torch import nn

torch.manual_seed(0)


class Ranker(nn.Module):
    def __init__(self):
        super().__init__()
        self.encode, self.score = nn.Linear(6, 8), nn.Linear(8, 1)

    def forward(self, pairs):
        return self.score(torch.relu(self.encode(pairs))).squeeze(-1)


def margin_loss(scores, best):
    scores = scores.detach()
    gaps = scores - scores[best] + 1.0
    return gaps.clamp_min(0).mean()


model = Ranker()
optimizer = torch.optim.AdamW(model.parameters())
loss = margin_loss(model(torch.randn(5, 6)), best=2)
loss.backward()
optimizer.step()
