"""GX302 names what keeps the history: an attribute or an element of what a variable holds."""

from __future__ import annotations

from cases import Cases, named_and_mended

case = Cases()

case(
    "GX302", "losses_kept_in_a_deque", """
    from collections import deque
    class Smoothed:
        def __init__(self):
            self.recent = deque(maxlen=3)
        def __call__(self, loss):
            mean = (loss + sum(self.recent)) / (1 + len(self.recent))
            self.recent.append(loss)
            return mean
    net, smooth = nn.Linear(3, 1), Smoothed()
    opt = torch.optim.SGD(net.parameters(), 0.01)
    for x in torch.rand(3, 5, 3):
        value = net(x).pow(2).mean()  #C
        loss = smooth(value)
        del value
        opt.zero_grad()
        loss.backward()
        opt.step()
    """,
    ("self.recent.append(loss)", "self.recent.append(loss.detach())"),
    text=("`smooth.recent[0]`",),
)  # fmt: skip
case(
    "GX302", "state_in_an_attribute_of_an_object", """
    class Filter:
        def __init__(self):
            self.hist_ = torch.zeros(5, 1)
        def __call__(self, x):
            self.hist_ = torch.tanh(0.9 * self.hist_ + x)  #C
            return self.hist_
    net, f = nn.Linear(3, 1), Filter()
    opt = torch.optim.SGD(net.parameters(), 0.01)
    for x in torch.rand(3, 5, 3):
        loss = f(net(x)).pow(2).mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
    """,
    ("self.hist_ = torch.tanh(0.9 * self.hist_ + x)",
     "self.hist_ = torch.tanh(0.9 * self.hist_.detach() + x)"),
    text=("hist_`",),
)  # fmt: skip
case(
    "GX302", "states_in_a_dict_of_a_list", """
    cell = nn.GRUCell(2, 3)
    opt = torch.optim.SGD(cell.parameters(), 0.01)
    slots = [{"h": torch.zeros(4, 3)} for _ in range(2)]
    for x in torch.rand(3, 2, 4, 2):
        total = 0.0
        for slot, part in zip(slots, x):
            slot["h"] = cell(part, slot["h"])  #C
            total = total + slot["h"].pow(2).mean()
        opt.zero_grad()
        total.backward()
        opt.step()
        del slot, part
    """,
    ('cell(part, slot["h"])', 'cell(part, slot["h"].detach())'),
    text=("`slot[",),
)  # fmt: skip


test_the_line_is_named, test_the_mended_script_is_silent = named_and_mended(case)
