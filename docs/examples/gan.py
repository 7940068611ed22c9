import torch
from torch import nn

torch.manual_seed(0)
generator, judge = nn.Linear(2, 8), nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))
judge_opt = torch.optim.Adam(judge.parameters(), fused=True)

fake = generator(torch.randn(4, 2))
score = judge(fake)
score.mean().backward(retain_graph=True)
judge_opt.step()
(-score).mean().backward()
