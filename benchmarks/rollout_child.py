"""The program that rollout.py measures: reinforcement learning with tiny tensors; prints JSON.

    [gradext run] rollout_child.py SUBJECT SIZE

`rollout`: a policy plays SIZE steps of four cart-poles in numpy and learns from them by clipped
policy gradients (PPO). Each step crosses from numpy to torch and back, and runs some thirty ops on
a few numbers without grad mode. `numbers`: the same with one pole, whose values numpy keeps.
`thread`: the main thread writes a tensor in place for SIZE seconds while a second Python thread
counts, which never touches torch; what counts is how far it gets.

It must not import gradext: it is what a program looks like that knows nothing of it.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.distributions import Categorical

ENVIRONMENTS = 4
PLAYED = 128  # steps of each environment between two rounds of learning
EPOCHS, MINIBATCHES = 4, 4
DISCOUNT, SMOOTHING, CLIP = 0.99, 0.95, 0.2

Array = npt.NDArray[np.float64]


class CartPoles:
    """Poles on carts that are pushed left or right, several at once (Barto, Sutton, Anderson)."""

    GRAVITY, CART, POLE, HALF_LENGTH, FORCE, SECONDS = 9.8, 1.0, 0.1, 0.5, 10.0, 0.02
    FARTHEST, STEEPEST, LONGEST = 2.4, 0.21, 500

    def __init__(self, count: int, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.state = self.random.uniform(-0.05, 0.05, (count, 4))
        self.age = np.zeros(count, dtype=np.int64)

    def step(self, actions: npt.NDArray[np.int64]) -> tuple[Array, Array, Array]:
        """Observations, rewards, and which poles fell (those start anew)."""
        _, speed, angle, spin = self.state.T
        sine, cosine = np.sin(angle), np.cos(angle)
        mass = self.CART + self.POLE
        force = np.where(actions == 1, self.FORCE, -self.FORCE)
        pushed = (force + self.POLE * self.HALF_LENGTH * spin**2 * sine) / mass
        turning = (self.GRAVITY * sine - cosine * pushed) / (
            self.HALF_LENGTH * (4 / 3 - self.POLE * cosine**2 / mass)
        )
        moving = pushed - self.POLE * self.HALF_LENGTH * turning * cosine / mass
        change = np.stack([speed, moving, spin, turning], axis=1)
        self.state = self.state + self.SECONDS * change
        self.age += 1
        over = (
            (np.abs(self.state[:, 0]) > self.FARTHEST)
            | (np.abs(self.state[:, 2]) > self.STEEPEST)
            | (self.age >= self.LONGEST)
        )
        self.state[over] = self.random.uniform(-0.05, 0.05, (int(over.sum()), 4))
        self.age[over] = 0
        return self.state.copy(), np.ones(len(over)), over.astype(np.float64)


def network(outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, outputs)
    )


class Agent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.actor, self.critic = network(2), network(1)

    def value(self, seen: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.critic(seen)
        return found

    def decide(
        self, seen: torch.Tensor, action: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        choice = Categorical(logits=self.actor(seen))
        if action is None:
            action = choice.sample()
        return action, choice.log_prob(action), choice.entropy(), self.critic(seen)


class Training:
    """The agent, what it plays in, and the room for what it has played."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.shuffle = np.random.default_rng(0)
        self.agent = Agent()
        self.optimizer = torch.optim.Adam(self.agent.parameters(), lr=2.5e-4, eps=1e-5)
        self.poles = CartPoles(ENVIRONMENTS, 0)
        shape = (PLAYED, ENVIRONMENTS)
        self.seen = torch.zeros((*shape, 4))
        self.actions, self.log_probs = torch.zeros(shape), torch.zeros(shape)
        self.rewards, self.ends, self.values = (torch.zeros(shape) for _ in range(3))
        self.next_seen = torch.Tensor(self.poles.state)
        self.next_end = torch.zeros(ENVIRONMENTS)

    def play(self) -> None:
        for step in range(PLAYED):
            self.seen[step] = self.next_seen
            self.ends[step] = self.next_end
            with torch.no_grad():
                action, log_prob, _, value = self.agent.decide(self.next_seen)
                self.values[step] = value.flatten()
            self.actions[step] = action
            self.log_probs[step] = log_prob
            seen, reward, end = self.poles.step(action.cpu().numpy())
            self.rewards[step] = torch.tensor(reward).view(-1)
            self.next_seen, self.next_end = torch.Tensor(seen), torch.Tensor(end)

    def advantages(self) -> torch.Tensor:
        with torch.no_grad():
            following = self.agent.value(self.next_seen).reshape(1, -1)
            found = torch.zeros_like(self.rewards)
            last: Any = 0
            for step in reversed(range(PLAYED)):
                is_last = step == PLAYED - 1
                alive = 1.0 - (self.next_end if is_last else self.ends[step + 1])
                value = following if is_last else self.values[step + 1]
                error = self.rewards[step] + DISCOUNT * value * alive - self.values[step]
                found[step] = last = error + DISCOUNT * SMOOTHING * alive * last
        return found

    def learn(self) -> float:
        advantages = self.advantages()
        returns = (advantages + self.values).reshape(-1)
        advantages, values = advantages.reshape(-1), self.values.reshape(-1)
        seen, actions = self.seen.reshape(-1, 4), self.actions.reshape(-1)
        log_probs = self.log_probs.reshape(-1)
        order = np.arange(PLAYED * ENVIRONMENTS)
        clipped = []
        loss = torch.zeros(())
        for _ in range(EPOCHS):
            self.shuffle.shuffle(order)
            for chosen in np.array_split(order, MINIBATCHES):
                _, log_prob, entropy, value = self.agent.decide(
                    seen[chosen], actions.long()[chosen]
                )
                change = log_prob - log_probs[chosen]
                ratio = change.exp()
                with torch.no_grad():
                    clipped.append(((ratio - 1.0).abs() > CLIP).float().mean().item())
                weight = advantages[chosen]
                weight = (weight - weight.mean()) / (weight.std() + 1e-8)
                policy_loss = torch.max(
                    -weight * ratio, -weight * torch.clamp(ratio, 1 - CLIP, 1 + CLIP)
                ).mean()
                value = value.view(-1)
                off = torch.clamp(value - values[chosen], -CLIP, CLIP)
                value_loss = (
                    0.5
                    * torch.max(
                        (value - returns[chosen]) ** 2,
                        (values[chosen] + off - returns[chosen]) ** 2,
                    ).mean()
                )
                loss = policy_loss - 0.01 * entropy.mean() + 0.5 * value_loss
                self.optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(self.agent.parameters(), 0.5)
                self.optimizer.step()
        return loss.item()


def rollout(size: int) -> dict[str, Any]:
    training = Training()
    playing = learning = 0.0
    loss = 0.0
    for _ in range(size // (PLAYED * ENVIRONMENTS)):
        began = time.process_time()
        training.play()
        played = time.process_time()
        loss = training.learn()
        playing += played - began
        learning += time.process_time() - played
    # The loss proves that the same was computed.
    return {"playing": playing, "learning": learning, "seconds": playing + learning, "loss": loss}


def numbers(size: int) -> dict[str, Any]:
    """The other way to write it: one pole, a step's values and the returns kept by numpy."""
    torch.manual_seed(0)
    agent, poles = Agent(), CartPoles(1, 0)
    optimizer = torch.optim.Adam(agent.parameters(), lr=2.5e-4)
    seen = poles.state.copy()
    playing = learning = 0.0
    loss = torch.zeros(())
    for _ in range(size // PLAYED):
        began = time.process_time()
        kept: list[tuple[Array, Any, Any, Any, float, float]] = []
        for _ in range(PLAYED):
            with torch.no_grad():
                observed = torch.as_tensor(seen, dtype=torch.float32)
                action, log_prob, _, value = agent.decide(observed)
            chosen = action.numpy()
            after, reward, end = poles.step(chosen)
            step = (seen[0], chosen[0], log_prob.numpy()[0], value.item(), reward[0], end[0])
            kept.append(step)
            seen = after
        observations, actions, log_probs, values, rewards, ends = (
            np.asarray(column) for column in zip(*kept, strict=True)
        )
        advantages, last = np.zeros(PLAYED), 0.0
        following = np.append(values[1:], 0.0)
        for at in reversed(range(PLAYED)):
            alive = 1.0 - ends[at]
            error = rewards[at] + DISCOUNT * following[at] * alive - values[at]
            advantages[at] = last = error + DISCOUNT * SMOOTHING * alive * last
        returns = torch.as_tensor(advantages + values, dtype=torch.float32)
        weights = torch.as_tensor(advantages, dtype=torch.float32)
        weights = (weights - weights.mean()) / (weights.std() + 1e-8)
        observed = torch.as_tensor(observations, dtype=torch.float32)
        taken, before = torch.as_tensor(actions), torch.as_tensor(log_probs)
        played = time.process_time()
        for _ in range(EPOCHS):
            _, log_prob, _, value = agent.decide(observed, taken)
            ratio = torch.exp(log_prob - before)
            clipped = torch.clamp(ratio, 1 - CLIP, 1 + CLIP) * weights
            loss = -torch.min(ratio * weights, clipped).mean()
            loss = loss + ((value.squeeze(-1) - returns) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        playing += played - began
        learning += time.process_time() - played
    return {
        "playing": playing,
        "learning": learning,
        "seconds": playing + learning,
        "loss": loss.item(),
    }


def beside(seconds: int) -> dict[str, Any]:
    """A thread counts in Python alone while another one writes tensors in place, for so long."""
    ends = time.perf_counter() + seconds
    counted, taken = 0, 0.0

    def count() -> None:
        nonlocal counted, taken
        began = time.thread_time()
        at = 0
        while time.perf_counter() < ends:
            for _ in range(1000):
                at += 1
        counted, taken = at, time.thread_time() - began

    counting = threading.Thread(target=count)
    values, step = torch.zeros(64), torch.ones(64)
    counting.start()
    began = time.thread_time()
    writes = 0
    while time.perf_counter() < ends:
        values.add_(step)
        writes += 1
    wrote = time.thread_time() - began
    counting.join()
    return {
        "counted": counted,
        "writes": writes,
        "count_seconds": taken / max(1, counted),
        "write_seconds": wrote / max(1, writes),
        "share": taken / (taken + wrote),
    }


SUBJECTS = {"rollout": rollout, "numbers": numbers, "thread": beside}

if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(SUBJECTS[sys.argv[1]](int(sys.argv[2]))))
