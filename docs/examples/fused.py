import torch

w = torch.nn.Parameter(torch.ones(1))
x = torch.ones(1, requires_grad=True)
optimizer = torch.optim.Adam([w], lr=0.5, fused=True)
y = (w * x).sum()
w.grad = torch.ones(1)
optimizer.step()
y.backward()
print(f"dy/dx: {x.grad.item()}, and it should be 1.0")
