"""What the calls that were counted have saved."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from fastloss.torch import counting, functional

MAX_SHAPES = 20  # that a report measures
ROUNDS = 3  # of each


@dataclass(frozen=True)
class Report:
    """What `report` found."""

    calls: dict[tuple[str, str], int]  # by the loss and "fastloss", or why torch computed it
    saved: float | None  # seconds, of the calls that were measured
    measured: int  # calls of these shapes

    def __str__(self) -> str:
        lines = [f"{'loss':<36}{'computed by':<44}{'calls':>10}"]
        for (name, way), number in sorted(self.calls.items()):
            by = way if way == "fastloss" else f"torch: {way}"
            lines.append(f"{name:<36}{by:<44}{number:>10,}")
        if not self.calls:
            lines.append("no calls")
        if self.saved is not None:
            total = sum(number for (_, way), number in self.calls.items() if way == "fastloss")
            lines.append(f"time saved: about {self.saved:.3g} s in {self.measured:,} of {total:,} calls of fastloss")
        return "\n".join(lines)


def report(measure: bool = False) -> Report:
    """How many calls took which way since the last `install`: fastloss, or torch and why.

    A call that torch computed is counted under its reason: "device or layout", "dtype", "tensor subclass",
    "torch.func", "mode or tracing", "forward-mode derivative", "gradient of another argument", "arguments" (torch
    raises, or knows what fastloss does not). "derivative of the gradient" counts backward passes that build a graph.
    Calls inside torch.compile that torch computes are counted once, when they are compiled.

    Parameters
    ----------
    measure
        Also time forward and backward of both, on random numbers of the shapes that took most elements, and tell what
        time the calls have saved. Takes seconds for large shapes.

    Returns
    -------
    Report
        `calls`, `saved` in seconds (None without `measure`) and the number of `measured` calls; prints as a table.

    Examples
    --------
    >>> import torch
    >>> import fastloss.torch
    >>> with fastloss.torch.installed():
    ...     _ = torch.nn.functional.cross_entropy(torch.zeros(2, 3), torch.tensor([0, 1]))
    ...     _ = torch.nn.functional.cross_entropy(torch.zeros(2, 3, device="meta"), torch.zeros(2, 3, device="meta"))
    >>> print(fastloss.torch.report())
    loss                                computed by                                      calls
    cross_entropy                       torch: device or layout                              1
    cross_entropy                       fastloss                                             1
    """
    calls, computed = counting.read()
    if not measure:
        return Report(calls, None, 0)
    largest = sorted(
        (key for key in computed if key[0] in functional.OWN),
        key=lambda key: computed[key] * key[1].numel(),
        reverse=True,
    )[:MAX_SHAPES]
    savings = {key: _saving(*key) for key in largest}
    known = {key: saving for key, saving in savings.items() if saving is not None}
    saved = sum(computed[key] * saving for key, saving in known.items())
    return Report(calls, saved, sum(computed[key] for key in known))


def _saving(name: str, shape: Any, dtype: Any, needs_grad: bool) -> float | None:
    """Seconds that a call of this shape saves; None where torch has no kernel for the dtype."""
    input = torch.rand(shape, dtype=dtype, requires_grad=needs_grad)
    if name in ("cross_entropy", "nll_loss", "multi_margin_loss"):
        target = torch.zeros(shape[:1] * (len(shape) > 1) + shape[2:], dtype=torch.int64)
    elif name == "multilabel_margin_loss":
        target = torch.zeros(shape, dtype=torch.int64)
    else:
        target = torch.ones(shape, dtype=dtype)
    times = []
    for function in (functional.OWN[name], getattr(functional, name)):
        best = float("inf")
        for _ in range(ROUNDS):
            input.grad = None
            start = time.perf_counter()
            try:
                loss = function(input, target, reduction="sum")
                if needs_grad:
                    loss.backward()
            except RuntimeError:
                return None
            best = min(best, time.perf_counter() - start)
        times.append(best)
    counting.forget((name, shape, dtype, needs_grad), ROUNDS)
    return times[0] - times[1]
