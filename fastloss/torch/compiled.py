"""A loss as one opaque operator, for torch.compile and torch.export."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch

from fastloss.torch import autograd, counting
from fastloss.torch.autograd import Loss

LOSSES: dict[str, Loss] = {}  # those that an operator may name


def run(loss: Loss, input: Any, target: Any, tensors: dict[str, Any], options: dict[str, Any], is_own: bool) -> Any:
    is_cast = loss.autocasts and torch.is_autocast_enabled("cpu")
    reason = _obstacle(loss, input, target, tensors, is_own, is_cast)
    if reason is not None:
        _count(loss.name, reason)
        return loss.in_torch(input, target, {**tensors, **options}, is_own)
    # Numbers may be symbols to the compiler, and so are arguments of their own.
    floats = {name: value for name, value in options.items() if isinstance(value, float)}
    integers = {
        name: value for name, value in options.items() if isinstance(value, int) and not isinstance(value, bool)
    }
    others = {name: value for name, value in options.items() if name not in floats and name not in integers}
    is_own = True if is_own else False  # noqa: SIM210, as is a comparison of two of them
    call = _describe(loss.name, tuple(tensors), tuple(floats), tuple(integers), tuple(others.items()), is_own, is_cast)
    return _loss(input, target, list(tensors.values()), list(floats.values()), list(integers.values()), call)


def _obstacle(loss: Loss, input: Any, target: Any, tensors: dict[str, Any], is_own: bool, is_cast: bool) -> str | None:
    if loss.name not in LOSSES:
        return "torch.compile"
    for tensor in (input, target, *tensors.values()):
        if not isinstance(tensor, torch.Tensor):
            return "arguments"
        if tensor.device.type != "cpu" or tensor.layout is not torch.strided:
            return "device or layout"
    if loss.classes and input.dim() == 0:
        return "arguments"
    if is_own and not (input.shape == target.shape or (loss.classes and target.dim() == max(input.dim() - 1, 0))):
        return "arguments"
    return autograd.unfit(loss, input, target, tensors, is_own, is_cast)


# Both are called while the compiler reads the caller's code, with constants: what they return is one in its graph.


@torch._dynamo.assume_constant_result
def _count(name: str, reason: str) -> None:
    counting.count(name, f"{reason}, once compiled")


@torch._dynamo.assume_constant_result
def _describe(
    name: str,
    tensors: Sequence[str],
    floats: Sequence[str],
    integers: Sequence[str],
    options: Sequence[tuple[str, Any]],
    is_own: bool,
    is_cast: bool,
) -> str:
    return json.dumps([name, [*tensors], [*floats, *integers], dict(options), is_own, is_cast])


class _Call:
    """What an operator's arguments say."""

    def __init__(self, tensors: Sequence[Any], floats: Sequence[float], integers: Sequence[int], call: str) -> None:
        name, names, of_numbers, options, self.is_own, self.is_cast = json.loads(call)
        self.loss = LOSSES[name]
        self.tensors = dict(zip(names, tensors, strict=True))
        self.options = options | dict(zip(of_numbers, [*floats, *integers], strict=True))

    def dtype(self, input: Any) -> Any:
        return torch.float32 if self.is_cast and input.dtype in autograd.HALVES else input.dtype

    def in_torch(self, input: Any, target: Any) -> Any:
        result = self.loss.in_torch(input, target, self.tensors | self.options, self.is_own)
        return result.to(self.dtype(input))


@torch.library.custom_op("fastloss::loss", mutates_args=())
def _loss(
    input: torch.Tensor,
    target: torch.Tensor,
    tensors: Sequence[torch.Tensor],
    floats: Sequence[float],
    integers: Sequence[int],
    call: str,
) -> torch.Tensor:
    this = _Call(tensors, floats, integers, call)
    try:
        value = autograd.compute(this.loss, input, target, this.tensors, this.options)
    except autograd.REFUSED:
        if not this.is_own:
            raise
        counting.count(this.loss.name, "arguments")
        return this.in_torch(input, target).clone()
    counting.count_computed(this.loss.name, input, True)
    return autograd.as_loss(value, this.dtype(input))


@_loss.register_fake
def _(
    input: torch.Tensor,
    target: torch.Tensor,
    tensors: Sequence[torch.Tensor],
    floats: Sequence[float],
    integers: Sequence[int],
    call: str,
) -> torch.Tensor:
    this = _Call(tensors, floats, integers, call)
    return input.new_empty(this.loss.shape(input, target, this.options), dtype=this.dtype(input))


@torch.library.custom_op("fastloss::gradient", mutates_args=())
def _gradient(
    grad_output: torch.Tensor,
    input: torch.Tensor,
    target: torch.Tensor,
    tensors: Sequence[torch.Tensor],
    floats: Sequence[float],
    integers: Sequence[int],
    call: str,
) -> torch.Tensor:
    this = _Call(tensors, floats, integers, call)
    try:
        array = autograd.gradient(this.loss, input, target, this.tensors, this.options, grad_output)
    except autograd.REFUSED:
        if not this.is_own:
            raise
        with torch.enable_grad():
            x = input.detach().requires_grad_()
            (grad,) = torch.autograd.grad(this.in_torch(x, target), x, grad_output)
    else:
        grad = autograd.as_tensor(array, input.dtype)
    expected = torch.empty_like(input, device="meta").stride()
    return grad if grad.stride() == expected else torch.empty_like(input).copy_(grad)


@_gradient.register_fake
def _(
    grad_output: torch.Tensor,
    input: torch.Tensor,
    target: torch.Tensor,
    tensors: Sequence[torch.Tensor],
    floats: Sequence[float],
    integers: Sequence[int],
    call: str,
) -> torch.Tensor:
    return torch.empty_like(input)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    input, target, tensors, ctx.floats, ctx.integers, ctx.call = inputs
    ctx.save_for_backward(input, target, *tensors)


def _backward(ctx: Any, grad_output: Any) -> tuple[Any, ...]:
    input, target, *tensors = ctx.saved_tensors
    grad = _gradient(grad_output, input, target, tensors, ctx.floats, ctx.integers, ctx.call)
    # An empty list counts as one of tensors.
    of_numbers: list[Any] = [None if numbers else [] for numbers in (ctx.floats, ctx.integers)]
    return grad, None, [None] * len(tensors), *of_numbers, None


_loss.register_autograd(_backward, setup_context=_save)
