"""Measures what the losses beyond cross-entropy are asked to reach, and prints it beside what they reach.

    python asv_bench/catalogue_table.py [--threads 2] [--rounds 15] [--only Dice ...]

Loss and gradient into a reused buffer, against the same loss as one writes it with torch, forward and backward at
equal threads; Dice against that of segmentation_models.pytorch; evaluate() against the loss alone. All take turns, and
results are compared before. Figures are ratios of medians. It takes a minute or two.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from table import Figure, chosen, print_figures
from torch.nn import functional as F
from tqdm import tqdm

import fastloss as fl
from fastloss.bench import calls, cases, machine, processes, timing

IMAGES = "8 x 21 x 512 x 512"
EVALUATED = ("65536 x 10", "65536 x 32", "65536 x 100", "4096 x 1000", "1024 x 32000", IMAGES)

Group = dict[str, calls.Call]


def torch_sigmoid_focal(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """torchvision's formula, alpha = 0.25 and gamma = 2."""
    p = torch.sigmoid(logits)
    loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    p_t = p * target + (1 - p) * (1 - target)
    return ((0.25 * target + 0.75 * (1 - target)) * loss * (1 - p_t) ** 2).mean()


def torch_focal(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    loss = F.cross_entropy(logits, target, reduction="none")
    return ((1 - torch.exp(-loss)) ** 2 * loss).mean()


def make(loss: str, shape: str) -> cases.Batch:
    return cases.make(cases.Case(loss, shape))


def against_torch(batch: cases.Batch, function: Callable[..., torch.Tensor], threads: int) -> Group:
    logits, target = torch.from_numpy(batch.input).requires_grad_(), torch.from_numpy(batch.target)

    def step() -> Any:
        logits.grad = None
        result = function(logits, target)
        result.backward()
        return result.item(), logits.grad

    loss = batch.case.loss
    ours = partial(getattr(fl, loss), batch.input, batch.target, out_grad=batch.grad, num_threads=threads)
    exact = logits.detach().double().requires_grad_()  # a sum of millions in float32 may be off by a third of a percent
    expected = function(exact, target if loss != "sigmoid_focal_loss" else target.double())
    expected.backward()
    value, own = ours()
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    np.testing.assert_allclose(own, exact.grad, rtol=1e-3, atol=2e-5 * np.abs(own).max())
    return {"torch": step, "fastloss": ours, "copy": calls.copy(batch, threads)}


def dice(threads: int) -> Group:
    """And cross-entropy beside it, in one call."""
    batch = make("dice_loss", IMAGES)
    theirs = calls.need(calls.segmentation_models()).DiceLoss("multiclass")
    group = against_torch(batch, theirs, threads)
    both = fl.combine([(1.0, fl.cross_entropy), (1.0, fl.dice_loss)])
    group["combined"] = partial(both, batch.input, batch.target, out_grad=batch.grad, num_threads=threads)
    return group


def evaluated(shape: str, threads: int) -> Group:
    batch = make("cross_entropy", shape)
    evaluate = partial(fl.evaluate, batch.input, batch.target, num_threads=threads)
    loss = calls.loss_only(batch, threads)
    np.testing.assert_allclose(evaluate().loss, loss(), rtol=1e-6)
    return {"loss": loss, "evaluate": evaluate}


def groups(threads: int) -> dict[str, Callable[[], Group]]:
    makers: dict[str, Callable[[], Group]] = {
        "sigmoid focal": lambda: against_torch(make("sigmoid_focal_loss", "4000000"), torch_sigmoid_focal, threads),
        "focal": lambda: against_torch(make("focal_cross_entropy", "1024 x 32000"), torch_focal, threads),
        "cross-entropy": lambda: against_torch(make("cross_entropy", IMAGES), F.cross_entropy, threads),
        "Dice": lambda: dice(threads),
    }
    return makers | {f"evaluate, {shape}": partial(evaluated, shape, threads) for shape in EVALUATED}


def figures(name: str, times: dict[str, float]) -> list[Figure]:
    if name.startswith("evaluate"):
        return [(name, "of loss alone", 1.15, times["evaluate"] / times["loss"], False)]
    over_torch = times["torch"] / times["fastloss"]
    if name == "Dice":
        return [
            (f"{name}, {IMAGES}", "x smp", 20, over_torch, True),
            (f"{name}, {IMAGES}", "copies", 6, times["fastloss"] / times["copy"], False),
            (f"{name} + cross-entropy", "of Dice", 1.3, times["combined"] / times["fastloss"], False),
        ]
    shapes = {"sigmoid focal": "4e6", "focal": "1024 x 32000", "cross-entropy": IMAGES}
    return [(f"{name}, {shapes[name]}", "x torch", 10 if name == "cross-entropy" else 20, over_torch, True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="threads of all (default: 2)")
    parser.add_argument("--rounds", type=int, default=15, help="turns that each takes (default: 15)")
    parser.add_argument("--only", nargs="*", default=[], help="what to measure, as the progress bar names it")
    arguments = parser.parse_args()
    processes.take_cpus(arguments.threads)
    torch.set_num_threads(arguments.threads)
    makers = chosen(groups(arguments.threads), arguments.only)
    rows = []
    with tqdm(total=arguments.rounds * len(makers), unit="round", file=sys.stderr) as bar:
        for name, maker in makers.items():
            bar.set_description(name)
            try:
                group = maker()
            except calls.Missing as reason:
                tqdm.write(f"{name}: {reason}", file=sys.stderr)
                continue
            times = timing.medians(timing.take_turns(group, rounds=arguments.rounds, progress=bar.update))
            rows += [(arguments.threads, figure) for figure in figures(name, times)]
    print_figures(f"{machine.isa()}, torch {torch.__version__}", rows)


if __name__ == "__main__":
    main()
