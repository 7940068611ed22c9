"""Inputs for losses and embeddings."""

from __future__ import annotations

from typing import Any

import torch

from gradext.opcheck.inputs.by_hand.values import f, i, op


@op("_ctc_loss")
def _() -> tuple[Any, ...]:
    return f(5, 2, 4).log_softmax(2), torch.ones(2, 3).long(), [5, 5], [2, 3]


@op("_ctc_loss.Tensor")
def _() -> tuple[Any, ...]:
    return f(5, 2, 4).log_softmax(2), torch.ones(2, 3).long(), i(5, 5), i(2, 3)


@op("_ctc_loss_backward")
def _() -> tuple[Any, ...]:
    logs, targets = f(5, 2, 4).log_softmax(2), torch.ones(2, 3).long()
    loss, alpha = torch.ops.aten._ctc_loss(logs, targets, [5, 5], [2, 3])
    return f(2), logs, targets, [5, 5], [2, 3], loss, alpha, 0


@op("_ctc_loss_backward.Tensor")
def _() -> tuple[Any, ...]:
    logs, targets = f(5, 2, 4).log_softmax(2), torch.ones(2, 3).long()
    loss, alpha = torch.ops.aten._ctc_loss(logs, targets, [5, 5], [2, 3])
    return f(2), logs, targets, i(5, 5), i(2, 3), loss, alpha, 0


@op("binary_cross_entropy", "binary_cross_entropy_with_logits")
def _() -> tuple[Any, ...]:
    return f(3), f(3).flip(0), f(3)


@op("binary_cross_entropy_backward")
def _() -> tuple[Any, ...]:
    return f(3), f(3), f(3).flip(0), f(3)


@op("huber_loss_backward")
def _() -> tuple[Any, ...]:
    return f(3), f(3), f(3).flip(0), 1, 0.1


@op("nll_loss", "nll_loss_forward", "nll_loss_nd")
def _() -> tuple[Any, ...]:
    return f(3, 4), i(0, 1, 2), f(4), 1, -100


@op("nll_loss2d", "nll_loss2d_forward")
def _() -> tuple[Any, ...]:
    return f(2, 4, 3, 3), torch.ones(2, 3, 3).long(), f(4), 1, -100


@op("nll_loss_backward")
def _() -> tuple[Any, ...]:
    return torch.tensor(1.5), f(3, 4), i(0, 1, 2), f(4), 1, -100, torch.tensor(2.0)


@op("nll_loss2d_backward")
def _() -> tuple[Any, ...]:
    target = torch.ones(2, 3, 3).long()
    return torch.tensor(1.5), f(2, 4, 3, 3), target, f(4), 1, -100, torch.tensor(2.0)


@op("_embedding_bag", "_embedding_bag_forward_only")
def _() -> tuple[Any, ...]:
    return f(5, 3), i(0, 1, 2, 3), i(0, 2), False, 0, False, None, False, -1


@op("embedding_dense_backward")
def _() -> tuple[Any, ...]:
    return f(4, 3), i(0, 1, 2, 3), 5, -1, False


@op("_embedding_bag_per_sample_weights_backward")
def _() -> tuple[Any, ...]:
    indices, offsets = i(0, 1, 2, 3), i(0, 2)
    weight = f(5, 3)
    _, to_bag, _, _ = torch.ops.aten._embedding_bag(weight, indices, offsets)
    return f(2, 3), weight, indices, offsets, to_bag, 0, -1


@op("embedding_renorm_", "embedding_renorm")
def _() -> tuple[Any, ...]:
    return f(5, 3) * 5, i(0, 1), 1.0, 2.0
