"""Inputs for norms and optimizers."""

from __future__ import annotations

from typing import Any

import torch

from gradext.opcheck.inputs.by_hand.values import Make, f, op, q, sparse, spd


@op("batch_norm")
def _() -> tuple[Any, ...]:
    return f(4, 3), f(3), f(3), f(3), f(3), True, 0.1, 1e-5, False


@op("instance_norm")
def _() -> tuple[Any, ...]:
    return f(2, 3, 4), f(3), f(3), f(3), f(3), True, 0.1, 1e-5, False


@op("_batch_norm_impl_index")
def _() -> tuple[Any, ...]:
    return f(4, 3), f(3), f(3), f(3), f(3), True, 0.1, 1e-5, False


@op("native_batch_norm", "_native_batch_norm_legit")
def _() -> tuple[Any, ...]:
    return f(4, 3), f(3), f(3), f(3), f(3), True, 0.1, 1e-5


@op("_native_batch_norm_legit_no_training", "_batch_norm_no_update", "_batch_norm_with_update")
def _() -> tuple[Any, ...]:
    return f(4, 3), f(3), f(3), f(3), f(3), 0.1, 1e-5


@op("batch_norm_update_stats")
def _() -> tuple[Any, ...]:
    return f(4, 3), f(3), f(3), 0.1


@op("quantized_batch_norm")
def _() -> tuple[Any, ...]:
    return q(2, 3, 4, 4), f(3), f(3), f(3), f(3), 1e-5, 0.1, 3


@op("native_group_norm_backward")
def _() -> tuple[Any, ...]:
    return f(2, 4, 3), f(2, 4, 3), f(2, 2), f(2, 2), f(4), 2, 4, 3, 2, [True, True, True]


@op("native_layer_norm")
def _() -> tuple[Any, ...]:
    return f(2, 3), [3], f(3), f(3), 1e-5


@op("native_layer_norm_backward")
def _() -> tuple[Any, ...]:
    mean, scale = f(2, 1), f(2, 1)
    return f(2, 3), f(2, 3), [3], mean, scale, f(3), f(3), [True, True, True]


@op("native_norm")
def _() -> tuple[Any, ...]:
    return sparse(3, 3), 2


@op("native_norm.ScalarOpt_dim_dtype")
def _() -> tuple[Any, ...]:
    return sparse(3, 3), 2, [0, 1], False, None


@op("norm.ScalarOpt_dtype")
def _() -> tuple[Any, ...]:
    return f(3, 3), 2, {"dtype": torch.float64}


@op("norm.dtype_out")
def _() -> tuple[Any, ...]:
    return f(3, 3), 2, [0], False, {"dtype": torch.float64, "out": torch.full((3,), 93.0).double()}


@op("nuclear_norm.dim_out")
def _() -> tuple[Any, ...]:
    return f(3, 3), [0, 1], {"out": torch.tensor(93.0)}


@op("linalg_cond.p_str")
def _() -> tuple[Any, ...]:
    return spd(3), "fro"


@op("linalg_norm.ord_str")
def _() -> tuple[Any, ...]:
    return f(3, 3), "fro"


@op("orgqr", "linalg_householder_product")
def _() -> tuple[Any, ...]:
    return f(3, 3), f(3)


@op("_amp_update_scale", "_amp_update_scale_")
def _() -> tuple[Any, ...]:
    tracker = torch.zeros(1, dtype=torch.int32)
    return torch.full((1,), 2.0), tracker, torch.zeros(1), 2.0, 0.5, 7


@op("_amp_update_scale", "_amp_update_scale_")
def _() -> tuple[Any, ...]:
    tracker = torch.ones(1, dtype=torch.int32)
    return torch.full((1,), 2.0), tracker, torch.ones(1), 2.0, 0.5, 7


@op(
    "_amp_foreach_non_finite_check_and_unscale_",
    "_amp_foreach_non_finite_check_and_unscale",
)
def _() -> tuple[Any, ...]:
    return [torch.tensor([1.0, float("inf")])], torch.zeros(1), torch.full((1,), 0.5)


def _fused(*states: str, **more: Any) -> Make:
    def make() -> tuple[Any, ...]:
        kwargs: dict[str, Any] = {"self": [f(3)], "grads": [f(3) + 1]}
        kwargs |= {state: [f(3) * 0.1] for state in states}
        kwargs |= {"lr": 0.1, "weight_decay": 0.01, "maximize": False}
        kwargs |= {"grad_scale": torch.full((1,), 2.0), "found_inf": torch.zeros(1)}
        return ({**kwargs, **more},)

    return make


def _tensor_lr(make: Make) -> Make:
    return lambda: ({**make()[0], "lr": torch.tensor(0.1)},)


for _suffix, _wrap in (("", lambda make: make), (".tensor_lr", _tensor_lr)):
    for _name in ("_fused_adam", "_fused_adamw"):
        for _end in ("", "_"):
            op(f"{_name}{_end}{_suffix}")(
                _wrap(
                    _fused(
                        *("exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs"),
                        beta1=0.9,
                        beta2=0.99,
                        eps=1e-8,
                        amsgrad=True,
                        state_steps=[torch.tensor(1.0)],
                    )
                )
            )
    for _end in ("", "_"):
        op(f"_fused_sgd{_end}{_suffix}")(
            _wrap(
                _fused(
                    "momentum_buffer_list",
                    momentum=0.9,
                    dampening=0.0,
                    nesterov=False,
                    is_first_step=False,
                )
            )
        )
        op(f"_fused_adagrad{_end}{_suffix}")(
            _wrap(
                _fused(
                    "state_sums",
                    state_steps=[torch.tensor(1.0)],
                    lr_decay=0.0,
                    eps=1e-8,
                )
            )
        )


@op("_foreach_addcdiv.Tensor", "_foreach_addcdiv_.Tensor")
@op("_foreach_addcmul.Tensor", "_foreach_addcmul_.Tensor")
def _() -> tuple[Any, ...]:
    return [f(3), f(3)], [f(3), f(3)], [f(3) + 1, f(3) + 1], torch.tensor([2.0, 3.0])
