"""Measures fastloss.torch against torch, prints what is reached beside what is asked.

    python asv_bench/torch_table.py [--threads 2] [--rounds 15] [--only "64 x 10" gpt alternating ...]

Forward and backward through autograd, at equal threads, where both take turns: torch's own function, fastloss's in
its place, and that with inplace=True. The gradients of both have been compared. Figures are ratios of medians. Then a
training step of a GPT, and a step that alternates with torch's matmul. It takes a minute or two.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import partial

import torch
from table import chosen
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

import fastloss.torch as ft
from fastloss.bench import timing

Step = Callable[[], object]

# logits: at least so many times torch
ASKED = {
    "64 x 10": 1.0,
    "65536 x 100": 5.0,
    "4096 x 1000": 4.0,
    "1024 x 32000": 12.0,
    "256 x 128256": 12.0,
    "8 x 21 x 512 x 512": 8.0,
    "BCE, 2e7": 10.0,
}


def batch(name: str) -> tuple[torch.Tensor, torch.Tensor, str]:
    torch.manual_seed(7)
    if name.startswith("BCE"):
        logits = torch.randn(20_000_000)
        return logits, (torch.rand_like(logits) < 0.3).float(), "binary_cross_entropy_with_logits"
    shape = [int(length) for length in name.split(" x ")]
    return torch.randn(shape), torch.randint(0, shape[1], [shape[0], *shape[2:]]), "cross_entropy"


def loss_and_gradient(function: Callable[..., torch.Tensor], logits: torch.Tensor, target: torch.Tensor) -> Step:
    """Forward and backward. The gradient is let go of in the step that made it: that costs time as well."""
    leaf = logits.requires_grad_()

    def step() -> None:
        function(leaf, target).backward()
        leaf.grad = None

    return step


def in_place(name: str, logits: torch.Tensor, target: torch.Tensor) -> Step:
    """Each step finds the gradient of the one before where the logits were, which for the time are numbers like others;
    torch's is that of the batch itself."""
    work = logits.detach().clone().requires_grad_()

    class Place(torch.autograd.Function):
        """Logits that are no leaf, in memory that is used again."""

        @staticmethod
        def forward(ctx: object, hidden: torch.Tensor) -> torch.Tensor:
            return work.detach()

        @staticmethod
        def backward(ctx: object, grad: torch.Tensor) -> None:
            return None

    hidden = torch.zeros((), requires_grad=True)

    def step() -> None:
        getattr(ft, name)(Place.apply(hidden), target, inplace=True).backward()

    return step


def losses(name: str) -> dict[str, Step]:
    logits, target, function = batch(name)
    steps = {
        "torch": loss_and_gradient(getattr(F, function), logits, target),
        "fastloss": loss_and_gradient(getattr(ft, function), logits, target),
    }
    grads = [torch.autograd.grad(getattr(each, function)(logits, target), logits)[0] for each in (F, ft)]
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-8)
    if logits.numel() > 1e6:
        steps["in place"] = in_place(function, logits, target)
    return steps


# ---- A GPT's step ---------------------------------------------------------------------------------------------------


class GPT(nn.Module):
    def __init__(self, vocabulary: int, width: int = 256, layers: int = 4, heads: int = 4, length: int = 1024) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        layer = partial(nn.TransformerEncoderLayer, width, heads, 4 * width, dropout=0.0, activation="gelu")
        self.layers = nn.ModuleList(layer(batch_first=True, norm_first=True) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.loss = nn.CrossEntropyLoss()

    def forward(self, tokens: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        length = tokens.shape[1]
        x = self.tokens(tokens) + self.places(torch.arange(length))
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        for layer in self.layers:
            x = layer(x, src_mask=mask, is_causal=True)
        return self.loss(self.head(self.norm(x)).flatten(0, 1), target.flatten())


def gpt() -> dict[str, Step]:
    """A training step of 1024 tokens: 4 layers, width 256, vocabulary 32000, with torch's loss and with fastloss's."""
    torch.manual_seed(0)
    model = GPT(32_000)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    tokens, target = torch.randint(0, 32_000, (2, 4, 256))

    def step() -> None:
        optimizer.zero_grad()
        model(tokens, target).backward()
        optimizer.step()

    def installed() -> None:
        with ft.installed():
            step()

    return {"torch": step, "fastloss": installed}


def alternating() -> dict[str, Step]:
    """torch's matmul, fastloss's loss, and both in turn."""
    torch.manual_seed(0)
    hidden, weight, target = torch.randn(1024, 256), torch.randn(256, 8000), torch.randint(0, 8000, (1024,))
    logits = hidden @ weight
    product = torch.empty_like(logits)
    loss = loss_and_gradient(ft.cross_entropy, logits, target)

    def matmul() -> None:
        torch.matmul(hidden, weight, out=product)

    def both() -> None:
        matmul()
        loss()

    return {"matmul": matmul, "loss": loss, "both": both}


def figures(name: str, times: dict[str, float]) -> Iterator[tuple[str, str, float, float]]:
    """(what, sign, asked, reached)."""
    if name == "gpt":
        yield "GPT step, torch / fastloss", ">=", 1 / 0.85, times["torch"] / times["fastloss"]
    elif name == "alternating":
        yield "matmul and loss in turn / their sum", "<=", 1.05, times["both"] / (times["matmul"] + times["loss"])
    else:
        yield name, ">=", ASKED[name], times["torch"] / times["fastloss"]
        if "in place" in times:
            yield f"{name}, in place", ">=", 1.0, times["torch"] / times["in place"]  # its aim is memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="threads of both (default: 2)")
    parser.add_argument("--rounds", type=int, default=15, help="turns that each takes (default: 15)")
    parser.add_argument("--only", nargs="*", default=[], help="what to measure, as the progress bar names it")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    makers: dict[str, Callable[[], dict[str, Step]]] = {name: partial(losses, name) for name in ASKED}
    makers |= {"gpt": gpt, "alternating": alternating}
    makers = chosen(makers, arguments.only)
    lines = [f"torch {torch.__version__}, {arguments.threads} threads", ""]
    lines.append(f"{'':<40}{'torch':>12}{'fastloss':>12}{'asked':>10}{'reached':>10}")
    with tqdm(total=arguments.rounds * len(makers), unit="round", file=sys.stderr) as bar:
        for name, make in makers.items():
            bar.set_description(name)
            times = timing.medians(timing.take_turns(make(), rounds=arguments.rounds, progress=bar.update))
            for what, sign, asked, reached in figures(name, times):
                missed = reached < asked if sign == ">=" else reached > asked
                ours = times[
                    "in place" if what.endswith("in place") else "both" if name == "alternating" else "fastloss"
                ]
                other = times.get("torch", float("nan"))
                shown = f"{other * 1e3:>9.3f} ms{ours * 1e3:>9.3f} ms"
                lines.append(f"{what:<40}{shown}{sign:>4}{asked:>6.2f}{reached:>10.2f}{'  missed' * missed}")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
