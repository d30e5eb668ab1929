"""What is timed: functions of no arguments, of fastloss and of its peers. Whoever gets one gets it checked.

Each returns the mean loss and its gradient, unless it says otherwise. Peers are imported only when asked for; Missing
says why one cannot be had.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

import fastloss as fl
from fastloss.bench.cases import Batch
from fastloss.catalogue import LOSSES
from fastloss.engines import get as get_engine

if TYPE_CHECKING:
    from fastloss.validate import NDArray

Call: TypeAlias = Callable[[], Any]


class Missing(NotImplementedError):
    """Why something cannot be measured here. asv takes NotImplementedError in a setup as "not applicable"."""


def need(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Missing(f"{module.partition('.')[0]} is not installed") from error


# ---- fastloss


def fused(batch: Batch, threads: int, function: Callable[..., Any] | None = None) -> Call:
    """Loss and gradient into the batch's buffer, by another build's function where one is given."""
    return _checked(batch, _fastloss(batch, threads, function, out_grad=batch.grad))


def loss_only(batch: Batch, threads: int) -> Call:
    """Returns the loss."""
    call = _fastloss(batch, threads)
    batch.verify(call())
    return call


def recycled(batch: Batch, threads: int) -> Call:
    """The loop that keeps a gradient until the next one has been computed."""
    call = _fastloss(batch, threads, return_grad=True)
    kept = None

    def step() -> Any:
        nonlocal kept
        loss, kept = call()
        return loss, kept

    return _checked(batch, step)


def in_place(batch: Batch, threads: int) -> Call:
    """The gradient over the input. It is the next call's input, a batch like any other; only the first is checked."""
    batch.expected  # noqa: B018, worked out while the input is there
    return _checked(batch, _fastloss(batch, threads, out_grad=batch.input))


def copy(batch: Batch, threads: int) -> Call:
    """The yardstick: the input, copied into the buffer that fused() writes to. Returns None."""
    if "cython" in fl.engines():
        return partial(get_engine("cython").parallel_copy, batch.input, batch.grad, threads)
    if threads == 1:
        return partial(np.copyto, batch.grad, batch.input)
    pool = ThreadPoolExecutor(threads)
    targets, sources = np.array_split(batch.grad.ravel(), threads), np.array_split(batch.input.ravel(), threads)
    return lambda: list(pool.map(np.copyto, targets, sources)) and None


def _fastloss(batch: Batch, threads: int, function: Callable[..., Any] | None = None, **options: Any) -> Call:
    case = batch.case
    function = function or LOSSES[case.loss]
    return partial(function, batch.input, batch.target, num_threads=threads, engine=case.engine, **options)


def _checked(batch: Batch, call: Call, rounded: bool = False) -> Call:
    batch.verify(*call(), rounded=rounded)
    return call


# ---- peers


def numpy_call(batch: Batch, threads: int) -> Call:
    """As one writes it in NumPy, in the input's dtype; losses other than the two by the reference engine."""
    z, y, case = batch.input, batch.target, batch.case

    def binary() -> Any:
        e = np.exp(-np.abs(z))
        loss = np.mean(np.maximum(z, 0) - z * y + np.log1p(e))
        return loss, (np.where(z >= 0, 1, e) / (1 + e) - y) / y.size

    def cross_entropy() -> Any:
        shifted = z - z.max(axis=1, keepdims=True)
        p = np.exp(shifted)
        total = p.sum(axis=1, keepdims=True)
        loss = np.mean(np.log(total) - np.take_along_axis(shifted, index, 1))
        p /= total
        np.put_along_axis(p, index, np.take_along_axis(p, index, 1) - 1, 1)
        p /= y.size
        return loss, p

    if case.loss == "binary_cross_entropy_with_logits":
        return _checked(batch, binary, rounded=True)
    if case.loss == "cross_entropy" and not case.ignored:
        index = np.expand_dims(y, 1)
        return _checked(batch, cross_entropy, rounded=True)
    return partial(LOSSES[case.loss], z, y, return_grad=True, engine="reference")


def torch_call(batch: Batch, threads: int, compiled: bool = False) -> Call:
    """torch's function of the same name, forward and backward into a leaf's gradient."""
    torch, name = need("torch"), batch.case.loss
    function = getattr(torch.nn.functional, name, None)
    if function is None:
        raise Missing(f"torch has no {name}")
    torch.set_num_threads(threads)
    # kl_div advises another reduction than the one that is compared.
    warnings.filterwarnings("ignore", message="reduction: 'mean' divides the total loss", category=UserWarning)

    def tensor(array: NDArray) -> Any:
        if array.dtype.name == "bfloat16":  # which torch does not take from NumPy
            return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
        return torch.from_numpy(array)

    logits, target = tensor(batch.input).requires_grad_(), tensor(batch.target)
    if compiled:
        function = torch.compile(function)

    def step() -> Any:
        logits.grad = None
        loss = function(logits, target)
        loss.backward()
        return loss.item(), logits.grad

    loss, grad = step()
    grad = grad.view(torch.uint16).numpy().view(batch.input.dtype) if batch.case.dtype == "bfloat16" else grad.numpy()
    batch.verify(loss, grad, rounded=True)
    return step


def jax_call(batch: Batch, threads: int) -> Call:
    """The jitted value and gradient of optax's loss, on as many threads as XLA finds CPUs."""
    jax, optax, case = need("jax"), need("optax"), batch.case
    if case.dtype == "float64":
        raise Missing("JAX computes float32 where float64 is given")
    if case.ignored:
        raise Missing("optax's losses have no ignore_index")
    functions = {
        "cross_entropy": partial(optax.softmax_cross_entropy_with_integer_labels, axis=1),
        "binary_cross_entropy_with_logits": optax.sigmoid_binary_cross_entropy,
        "sigmoid_focal_loss": partial(optax.sigmoid_focal_loss, alpha=0.25),
        "hinge_loss": optax.hinge_loss,
    }
    if case.loss not in functions:
        raise Missing(f"optax has no {case.loss}")
    function = functions[case.loss]
    jitted = jax.jit(jax.value_and_grad(lambda z, y: function(z, y).mean()))
    target = batch.target.astype(np.int32) if batch.target.dtype.kind == "i" else batch.target
    call = partial(jitted, jax.device_put(batch.input), jax.device_put(target))
    return _checked(batch, lambda: jax.block_until_ready(call()), rounded=True)


def sklearn_call(batch: Batch, threads: int) -> Call:
    """scikit-learn's loss and gradient of each row; it leaves the division by their number to others."""
    module, case = need("sklearn._loss.loss"), batch.case
    if case.loss == "binary_cross_entropy_with_logits":
        loss: Any = module.HalfBinomialLoss()
        given, target = batch.input.ravel(), batch.target.ravel()
    elif case.loss == "cross_entropy" and batch.input.ndim == 2:
        loss, given = module.HalfMultinomialLoss(n_classes=batch.input.shape[1]), batch.input
        target = batch.target.astype(given.dtype)
    else:
        raise Missing(f"scikit-learn has no {case.loss} of {batch.input.ndim} dimensions")
    if case.dtype not in ("float32", "float64"):
        raise Missing(f"scikit-learn computes no {case.dtype}")
    if case.ignored:
        raise Missing("scikit-learn has no ignore_index")
    losses, grad = np.zeros(len(given), given.dtype), np.ones_like(given)
    call = partial(loss.loss_gradient, target, given, loss_out=losses, gradient_out=grad, n_threads=threads)
    call()
    batch.verify(losses.mean(dtype=np.float64), (grad / grad.dtype.type(len(grad))).reshape(batch.input.shape))
    return call


def segmentation_models() -> str:
    """The module of segmentation_models.pytorch's losses, which can be imported, where it is installed, without the
    rest of the package: that imports encoders, and what those need."""
    name = "segmentation_models_pytorch"
    spec = None if name in sys.modules else importlib.util.find_spec(name)
    if spec is not None:
        package = types.ModuleType(name)
        package.__path__ = list(spec.submodule_search_locations or [])
        sys.modules[name] = package
    return f"{name}.losses"


PEERS: dict[str, Callable[[Batch, int], Call]] = {
    "NumPy": numpy_call,
    "torch": torch_call,
    "torch.compile": partial(torch_call, compiled=True),
    "JAX": jax_call,
    "scikit-learn": sklearn_call,
}


def peers(batch: Batch, threads: int, wanted: tuple[str, ...]) -> tuple[dict[str, Call], dict[str, str]]:
    """The peers that can be had, and why the others cannot: not installed, no such loss, or a wrong result."""
    found, missing = {}, {}
    for name in wanted:
        try:
            with np.errstate(all="ignore"):
                found[name] = PEERS[name](batch, threads)
        except RuntimeError as reason:  # Missing, or what the peer says of a dtype or an operating system
            missing[name] = str(reason).partition("\n")[0]
        except AssertionError as error:
            missing[name] = f"its result is not fastloss's: {error}"
    return found, missing
