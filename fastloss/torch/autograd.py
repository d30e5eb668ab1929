"""How a loss is computed for torch: by fastloss where it can be, else by torch; and its gradients of every order.

`run` is where every function and module ends. For a mean or a sum the gradient is computed together with the loss and
waits for the backward pass, which hands it out once: what autograd was given may be added to in place, so a second
backward pass computes its own. Derivatives of the gradient are those of the same loss in torch's operations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.autograd.forward_ad
from torch.utils._device import DeviceContext

from fastloss.torch import counting

try:
    import ml_dtypes
except ImportError:
    BFLOAT16 = None
else:
    BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

try:
    from fastloss.engines._cython import memory_of
except ImportError:  # an installation without the extension
    memory_of = None

HALVES = frozenset({torch.float16, torch.bfloat16})
FLOATS = frozenset({torch.float32, torch.float64, torch.float16} | ({torch.bfloat16} if BFLOAT16 else set()))
INTEGERS = frozenset({torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8})
NUMBERS = INTEGERS | {torch.bool}
# What arrays have for the dtypes of tensors.
_DTYPES = {
    dtype: BFLOAT16 if dtype is torch.bfloat16 else np.dtype(str(dtype).removeprefix("torch."))
    for dtype in (FLOATS | NUMBERS if memory_of else ())
}
# What fastloss, and torch where memory cannot be looked at, raise of arguments that they refuse.
REFUSED = (ValueError, TypeError, RuntimeError, BufferError)
# The types of tensors whose memory may be looked at.
PLAIN = frozenset({torch.Tensor, torch.nn.Parameter})

_functorch_is_active = torch._C._are_functorch_transforms_active
_dispatch_modes = torch._C._len_torch_dispatch_stack
_grad_is_enabled = torch.is_grad_enabled
_is_dynamo_compiling = torch.compiler.is_dynamo_compiling
_any_autocast = torch._C._is_any_autocast_enabled
_is_batched = torch._C._functorch.is_legacy_batchedtensor  # by is_grads_batched of torch.autograd.grad
_threads = torch.get_num_threads
_function_modes = torch._C._len_torch_function_stack
_tracing_state = torch._C._get_tracing_state
_to_dlpack = torch._C._to_dlpack
_forward_ad = torch.autograd.forward_ad


@dataclass(frozen=True, eq=False)
class Loss:
    name: str
    compute: Callable[..., Any]  # fastloss's function, for arrays
    formula: Callable[..., Any]  # the same with all of its options in torch's operations
    own: Callable[..., Any] | None = None  # torch's function of this name
    classes: bool = False  # the target holds class indices
    probabilities: bool = False  # the target may hold numbers in the input's dtype and shape
    numbers: frozenset[Any] = frozenset()  # other dtypes of such a target that torch takes too
    autocasts: bool = False  # torch.autocast computes it in float32
    per: str = "element"  # what reduction="none" has a loss of: "element", "row", "class" or "sample"
    twice: bool = True  # torch's function has second derivatives, and no warnings

    def shape(self, input: Any, target: Any, options: dict[str, Any]) -> Any:
        """The shape of the loss."""
        if options["reduction"] != "none":
            return ()
        if self.per == "element":
            return input.shape
        if self.per in ("class", "sample"):
            samples = tuple(input.shape[:1]) if options["per_sample"] else ()
            axis = 0 if input.dim() == 1 else options["axis"]
            classes = 1 if options["mode"] == "binary" else input.shape[axis]
            return (*samples, classes) if self.per == "class" else samples
        if self.classes and target.dtype in INTEGERS:
            return target.shape
        axis = options.get("axis", 1) % input.dim() if self.classes and input.dim() > 1 else input.dim() - 1
        return input.shape[:axis] + input.shape[axis + 1 :]

    def in_torch(self, input: Any, target: Any, options: dict[str, Any], is_own: bool, twice: bool = False) -> Any:
        """The loss in torch's operations: torch's function itself where that has all the options."""
        if is_own and self.own is not None and (self.twice or not twice):
            return self.own(input, target, **options)
        return self.formula(input, target, **options)


def run(
    loss: Loss,
    input: Any,
    target: Any,
    tensors: dict[str, Any],
    options: dict[str, Any],
    is_own: bool = False,
    inplace: bool = False,
) -> Any:
    """The loss as a tensor.

    tensors: the options that are tensors; is_own: whether torch's function takes all of these options."""
    if _is_dynamo_compiling():
        from fastloss.torch import compiled

        return compiled.run(loss, input, target, tensors, options, is_own)
    is_cast = _any_autocast() and loss.autocasts and torch.is_autocast_enabled("cpu")
    reason = obstacle(loss, input, target, tensors, is_own, is_cast)
    if reason is None:
        needs_grad = input.requires_grad and _grad_is_enabled()
        if needs_grad and inplace:
            _check_inplace(input)
        dtype = input.dtype
        if is_cast and dtype in HALVES:
            dtype = torch.float32
        try:
            if needs_grad:
                result = _apply(input, (loss, target, tensors, options, dtype, is_own, inplace))
            else:
                result = as_loss(compute(loss, input, target, tensors, options), dtype)
        except REFUSED:
            # What fastloss refuses torch may know, and else it says so in its own words.
            reason = "device or layout" if _is_elsewhere(input, target, *tensors.values()) else "arguments"
            if not is_own and reason == "arguments":
                raise
        else:
            counting.count_computed(loss.name, input, needs_grad)
            return result
    counting.count(loss.name, reason)
    return loss.in_torch(input, target, {**tensors, **options}, is_own)


def obstacle(loss: Loss, input: Any, target: Any, tensors: dict[str, Any], is_own: bool, is_cast: bool) -> str | None:
    """Why this call is not for fastloss, as the report names it; None where it is, if fastloss takes its arguments."""
    if type(input) not in PLAIN or type(target) not in PLAIN:
        is_tensor = isinstance(input, torch.Tensor) and isinstance(target, torch.Tensor)
        return "tensor subclass" if is_tensor else "arguments"
    if _functorch_is_active():
        return "torch.func"
    if _dispatch_modes() or _tracing_state() is not None or (_function_modes() and not _only_devices()):
        return "mode or tracing"
    if _forward_ad._current_level >= 0:
        return "forward-mode derivative"
    if not tensors and input.dtype in FLOATS and loss.classes and target.dtype in INTEGERS:
        return None  # what most calls are
    return unfit(loss, input, target, tensors, is_own, is_cast)


def unfit(loss: Loss, input: Any, target: Any, tensors: dict[str, Any], is_own: bool, is_cast: bool) -> str | None:
    """The part of `obstacle` that lies in dtypes and in who needs a gradient."""
    dtype, kind = input.dtype, target.dtype
    if dtype not in FLOATS:
        return "dtype"
    if target.requires_grad:
        return "gradient of another argument"
    takes_float32 = is_cast and dtype in HALVES
    if is_own and not (
        (loss.classes and kind in INTEGERS)
        or (loss.probabilities and (kind is dtype or kind in loss.numbers or (takes_float32 and kind is torch.float32)))
    ):
        return "dtype"
    for tensor in tensors.values():
        if type(tensor) not in PLAIN:
            return "tensor subclass" if isinstance(tensor, torch.Tensor) else "arguments"
        if tensor.requires_grad:
            return "gradient of another argument"
        if is_own and tensor.dtype is not dtype and not (takes_float32 and tensor.dtype is torch.float32):
            return "dtype"
    return None


def _is_elsewhere(*tensors: Any) -> bool:
    """Whether a tensor is no plain memory of the CPU."""
    return any(
        not tensor.is_cpu or tensor.layout is not torch.strided or tensor.is_nested or tensor.is_neg()
        for tensor in tensors
    )


def _only_devices() -> bool:
    """Whether every mode is torch.device's, as torch.set_default_device leaves it on, which changes nothing here."""
    modes = (torch._C._get_function_stack_at(i) for i in range(_function_modes()))
    return all(isinstance(mode, DeviceContext) for mode in modes)


def _check_inplace(input: Any) -> None:
    base = input if input._base is None else input._base
    if base.is_leaf and base.requires_grad:
        raise RuntimeError(
            "inplace=True is given with logits that are a leaf requiring grad, or a view of one, whose memory holds "
            "the parameter itself: expected the result of an operation, or inplace=False"
        )
    if any(stride == 0 and length > 1 for stride, length in zip(input.stride(), input.shape, strict=True)):
        raise RuntimeError(
            f"inplace=True is given with logits of shape {tuple(input.shape)} and strides {input.stride()}, of which "
            "several share memory: expected an element of its own for each, or inplace=False"
        )


# ---- Tensors and arrays ---------------------------------------------------------------------------------------------


def as_array(tensor: Any) -> Any:
    """The tensor's memory as an array."""
    dtype = _DTYPES.get(tensor.dtype)
    if dtype is not None and type(tensor) in PLAIN and not tensor.is_neg():
        return memory_of(_to_dlpack(tensor), dtype)  # a third of the time of numpy(), which small batches feel
    if tensor.requires_grad:
        tensor = tensor.detach()
    return tensor.view(torch.int16).numpy().view(BFLOAT16) if tensor.dtype is torch.bfloat16 else tensor.numpy()


def as_tensor(array: Any, dtype: Any) -> Any:
    """The array's memory as a tensor of this dtype, which keeps it alive."""
    if dtype is torch.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def as_loss(value: Any, dtype: Any) -> Any:
    if dtype is torch.float32:  # the quickest of several ways
        return torch.from_numpy(np.array(value, np.float32))
    return torch.from_numpy(np.asarray(value)).to(dtype)


def compute(
    loss: Loss, input: Any, target: Any, tensors: dict[str, Any], options: dict[str, Any], **request: Any
) -> Any:
    """fastloss's function on the tensors' memory, with as many threads as torch uses."""
    if tensors:
        options = {**options, **{name: as_array(tensor) for name, tensor in tensors.items()}}
    return loss.compute(as_array(input), as_array(target), num_threads=_threads(), **options, **request)


def gradient(
    loss: Loss,
    input: Any,
    target: Any,
    tensors: dict[str, Any],
    options: dict[str, Any],
    grad_output: Any,
    out_grad: Any = None,
) -> Any:
    """The gradient in a pass of its own, as an array."""
    upstream = grad_output.item() if grad_output.dim() == 0 else as_array(grad_output)
    return compute(loss, input, target, tensors, options, return_grad=True, grad_output=upstream, out_grad=out_grad)[1]


# ---- Autograd -------------------------------------------------------------------------------------------------------


class _Loss(torch.autograd.Function):
    """A loss that needs a gradient."""

    @staticmethod
    def forward(ctx: Any, input: Any, call: Any) -> Any:
        loss, target, tensors, options, dtype, is_own, inplace = call
        ctx.save_for_backward(input, target, *tensors.values())
        ctx.call = loss, tuple(tensors), options, is_own, inplace  # no tensors, which backward passes let go of
        if tensors:
            options = {**options, **{name: as_array(tensor) for name, tensor in tensors.items()}}
        # float16 gradients of a mean underflow unless the upstream gradient, a loss scale, is in them from the start.
        waits = not (inplace or options["reduction"] == "none" or input.dtype is torch.float16)
        result = loss.compute(as_array(input), as_array(target), return_grad=waits, num_threads=_threads(), **options)
        if waits:
            result, grad = result
            ctx.waiting = as_tensor(grad, input.dtype)
        else:
            ctx.waiting = None
        return as_loss(result, dtype)

    @staticmethod
    def backward(ctx: Any, grad_output: Any) -> tuple[Any, None]:
        if _grad_is_enabled() or _functorch_is_active() or _is_batched(grad_output):
            ctx.waiting = None
            return _differentiable(ctx, grad_output), None
        grad, ctx.waiting = ctx.waiting, None
        if grad is None:
            grad = (_recomputed if type(grad_output) in PLAIN else _differentiable)(ctx, grad_output)
        elif grad_output.item() != 1.0:
            grad.mul_(grad_output)
        return grad, None


# Function.apply without its preparations for functorch, which `obstacle` has ruled out: they cost small batches.
_apply = super(torch.autograd.Function, _Loss).apply


def _recomputed(ctx: Any, grad_output: Any) -> Any:
    loss, names, options, _, inplace = ctx.call
    input, target, *tensors = ctx.saved_tensors  # raises what torch raises where they were changed, or freed
    given = dict(zip(names, tensors, strict=True))
    if not inplace:
        return as_tensor(gradient(loss, input, target, given, options, grad_output), input.dtype)
    gradient(loss, input, target, given, options, grad_output, out_grad=as_array(input))
    # Whoever else has saved the logits for a gradient finds out from their version.
    torch.autograd.graph.increment_version(input)
    return input.detach()


def _differentiable(ctx: Any, grad_output: Any) -> Any:
    """The gradient by torch's operations: differentiable where the grad mode is on, and under vmap."""
    loss, names, options, is_own, _ = ctx.call
    input, target, *tensors = ctx.saved_tensors
    counting.count(loss.name, "derivative of the gradient")
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        x = input if create_graph else input.detach().requires_grad_()
        result = loss.in_torch(x, target, {**dict(zip(names, tensors, strict=True)), **options}, is_own, True)
        (grad,) = torch.autograd.grad(result.to(grad_output.dtype), x, grad_output, create_graph=create_graph)
    return grad
