"""What is timed: functions of no arguments, of fastloss and of its peers, and the medians of their times.

Each call returns the mean loss and its gradient, so that Batch.verify can check them. Peers are imported here only
when asked for; Missing says that one is not installed.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from time import perf_counter, process_time, sleep
from typing import Any

import numpy as np

import fastloss as fl
from fastloss.engines import get as get_engine
from fastloss.threads import available_cpus

from .cases import Batch

Call = Callable[[], Any]


class Missing(NotImplementedError):
    """asv takes NotImplementedError in a setup as "not applicable", and shows it as such."""


def need_threads(threads: int) -> None:
    if threads > available_cpus():
        raise Missing(f"{threads} threads need as many CPUs")


def need(module: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Missing(f"{module} is not installed") from error


def fused(batch: Batch, threads: int, **options: Any) -> Call:
    """fastloss: loss and gradient into the batch's buffer, unless options say otherwise."""
    if not options:
        options = {"out_grad": batch.grad}
    loss = fl.binary_cross_entropy_with_logits if batch.case.binary else fl.cross_entropy
    return partial(loss, batch.logits, batch.target, num_threads=threads, engine="cython", **options)


def loss_only(batch: Batch, threads: int) -> Call:
    return fused(batch, threads, return_grad=False)


def recycled(batch: Batch, threads: int) -> Call:
    """The loop that keeps a gradient until the next one has been computed."""
    call = fused(batch, threads, return_grad=True)
    kept = None

    def step() -> Any:
        nonlocal kept
        loss, kept = call()
        return loss, kept

    return step


def copy(batch: Batch, threads: int) -> Call:
    """The yardstick: the logits, copied into the buffer that fused() writes to."""
    return partial(get_engine("cython").parallel_copy, batch.logits, batch.grad, threads)


def numpy_call(batch: Batch) -> Call:
    """The loss as one writes it in NumPy, in the logits' dtype."""
    z, y, axis = batch.logits, batch.target, 1
    index = np.expand_dims(y, axis)

    def binary() -> Any:
        e = np.exp(-np.abs(z))
        loss = np.mean(np.maximum(z, 0) - z * y + np.log1p(e))
        return loss, (np.where(z >= 0, 1, e) / (1 + e) - y) / y.size

    def cross_entropy() -> Any:
        shifted = z - z.max(axis=axis, keepdims=True)
        p = np.exp(shifted)
        total = p.sum(axis=axis, keepdims=True)
        loss = np.mean(np.log(total) - np.take_along_axis(shifted, index, axis))
        p /= total
        np.put_along_axis(p, index, np.take_along_axis(p, index, axis) - 1, axis)
        p /= y.size
        return loss, p

    return binary if batch.case.binary else cross_entropy


def torch_call(batch: Batch, threads: int) -> Call:
    """torch eager, forward and backward into a leaf's gradient."""
    torch = need("torch")
    torch.set_num_threads(threads)
    logits, target = torch.from_numpy(batch.logits).requires_grad_(), torch.from_numpy(batch.target)
    functional = torch.nn.functional
    function = functional.binary_cross_entropy_with_logits if batch.case.binary else functional.cross_entropy

    def step() -> Any:
        logits.grad = None
        loss = function(logits, target)
        loss.backward()
        return loss.item(), logits.grad

    return step


def jax_call(batch: Batch) -> Call:
    """The jitted value and gradient of optax's loss, on as many threads as XLA finds CPUs."""
    jax, optax = need("jax"), need("optax")

    def mean(logits: Any, target: Any) -> Any:
        if batch.case.binary:
            return optax.sigmoid_binary_cross_entropy(logits, target).mean()
        return optax.softmax_cross_entropy_with_integer_labels(logits, target, axis=1).mean()

    function = jax.jit(jax.value_and_grad(mean))
    target = batch.target if batch.case.binary else batch.target.astype(np.int32)
    call = partial(function, jax.device_put(batch.logits), jax.device_put(target))
    return lambda: jax.block_until_ready(call())


def sklearn_call(batch: Batch, threads: int) -> Call:
    """scikit-learn's loss and gradient of each row; it leaves the division by their number to others."""
    classes = batch.logits.shape[1]
    loss_gradient = need("sklearn._loss.loss").HalfMultinomialLoss(n_classes=classes).loss_gradient
    losses, target = np.zeros(len(batch.logits), np.float32), batch.target.astype(np.float32)
    return partial(
        loss_gradient, target, batch.logits, loss_out=losses, gradient_out=np.ones_like(batch.logits), n_threads=threads
    )


def medians(
    calls: dict[str, Call], rounds: int = 9, sample: float = 0.002, progress: Callable[[], Any] = lambda: None
) -> dict[str, float]:
    """The median time of each call, in seconds. They take turns, so that a slow phase of the machine meets them all.

    A call is repeated until it has taken `sample` seconds, and made once untimed before, so that it does not find the
    caches, and threads that wait for work, as another left them; calls of 0.1 s do not mind that.
    """
    numbers, times = {}, {name: [] for name in calls}
    for name, call in calls.items():
        numbers[name] = max(1, round(sample / min(_time(call, 1) for _ in range(3))))
    for _ in range(rounds):
        for name, call in calls.items():
            _settle()
            if not times[name] or times[name][0] < 0.1:
                call()
            times[name].append(_time(call, numbers[name]))
        progress()
    return {name: statistics.median(values) for name, values in times.items()}


def _settle() -> None:
    """Waits for threads that the last call left at work: XLA's go on for milliseconds, returning memory."""
    for _ in range(100):
        before = process_time()
        sleep(0.001)
        if process_time() - before < 0.0002:
            return


def _time(call: Call, number: int) -> float:
    start = perf_counter()
    for _ in range(number):
        call()
    return (perf_counter() - start) / number
