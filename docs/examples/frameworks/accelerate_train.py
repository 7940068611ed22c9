import torch
from accelerate import Accelerator

from gradext.integrations.steps import WatchedSteps

torch.manual_seed(0)
accelerator = Accelerator(cpu=True)
net = torch.nn.Linear(4, 4)
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
batches = torch.utils.data.DataLoader(torch.randn(12, 4), batch_size=2)
net, optimizer, batches = accelerator.prepare(net, optimizer, batches)

steps = WatchedSteps(every=2, on_finding="stop")  # logger=... takes a SummaryWriter or a wandb run
done = 0
for batch in batches:
    with steps.step():
        gate = torch.sigmoid(net(batch))
        loss = (gate * gate).sum()
        gate.data.clamp_(max=0.5)  # past the version counter: no error, a wrong gradient
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
    done += 1
    if steps.wants_stop:
        break
print("stopped after step", done)
