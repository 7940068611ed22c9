"""The lesson's models in plain torch: an MLP, a small ViT and a small LLM with a KV cache.

Owns what the chapters run and time, sized so that a forward takes well under a millisecond to a few
milliseconds on one core. The models know nothing of modes, claims or timing.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import nn
from torch.nn import functional

KeysAndValues: TypeAlias = "tuple[torch.Tensor, torch.Tensor]"
Cache: TypeAlias = "list[KeysAndValues]"


class MLP(nn.Module):
    """``depth`` linear layers of the same width with a ReLU between them."""

    def __init__(self, width: int = 64, depth: int = 4) -> None:
        super().__init__()
        self.width = width
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, width] -> [batch, width]"""
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x))
        result: torch.Tensor = self.layers[-1](x)
        return result


class Attention(nn.Module):
    """Multi-head self-attention that can go on from the keys and values of earlier tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self, x: torch.Tensor, past: KeysAndValues | None = None, causal: bool = False
    ) -> tuple[torch.Tensor, KeysAndValues]:
        """[batch, tokens, width] -> the same shape, and the keys and values so far."""
        batch, tokens, width = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads)
        queries, keys, values = qkv.permute(2, 0, 3, 1, 4)
        if past is not None:
            keys = torch.cat((past[0], keys), dim=2)
            values = torch.cat((past[1], values), dim=2)
        mixed = functional.scaled_dot_product_attention(
            # A single new token may look at all tokens before it: nothing to mask.
            queries,
            keys,
            values,
            is_causal=causal and tokens > 1,
        )
        return self.out(mixed.transpose(1, 2).reshape(batch, tokens, width)), (keys, values)


class Block(nn.Module):
    """One transformer block: attention and an MLP, each behind a LayerNorm, each added on."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(
        self, x: torch.Tensor, past: KeysAndValues | None = None, causal: bool = False
    ) -> tuple[torch.Tensor, KeysAndValues]:
        mixed, present = self.attention(self.norm1(x), past, causal)
        x = x + mixed
        return x + self.mlp(self.norm2(x)), present


class ViT(nn.Module):
    """A small vision transformer: patches, transformer blocks, mean over patches, classes."""

    def __init__(
        self,
        image: int = 32,
        patch: int = 8,
        width: int = 64,
        depth: int = 3,
        heads: int = 4,
        classes: int = 10,
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, stride=patch)
        self.position = nn.Parameter(torch.zeros(1, (image // patch) ** 2, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[batch, 3, image, image] -> [batch, classes]"""
        x = self.patches(images).flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            x, _ = block(x)
        result: torch.Tensor = self.head(self.norm(x).mean(dim=1))
        return result


class LLM(nn.Module):
    """A small decoder-only language model; ``forward`` takes and returns the KV cache."""

    def __init__(
        self,
        vocabulary: int = 256,
        context: int = 64,
        width: int = 64,
        depth: int = 3,
        heads: int = 4,
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(
        self, tokens: torch.Tensor, cache: Cache | None = None
    ) -> tuple[torch.Tensor, Cache]:
        """[batch, new] token ids and the cache -> [batch, new, vocabulary] logits, longer cache"""
        seen = cache[0][0].shape[2] if cache else 0
        places = torch.arange(seen, seen + tokens.shape[1], device=tokens.device)
        x = self.tokens(tokens) + self.positions(places)
        longer: Cache = []
        for index, block in enumerate(self.blocks):
            x, present = block(x, cache[index] if cache else None, causal=True)
            longer.append(present)
        return self.head(self.norm(x)), longer
