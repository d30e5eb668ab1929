"""Writes losses.md and its pictures from the list of losses, their docstrings and the table below.

    python docs/build.py            # needs matplotlib
    python docs/build.py --check    # is the page what this writes? Text only, without matplotlib

A new loss needs one entry in ENTRIES.
"""

from __future__ import annotations

import argparse
import inspect
import io
import json
import re
import sys
import textwrap
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import fastloss as fl
from fastloss.catalogue import LOSSES

PAGE = Path(__file__).parent / "losses.md"
PICTURES = Path(__file__).parent / "losses"


@dataclass(frozen=True)
class Figure:
    """What the two panels of a picture show: the loss, and its gradient by the first column of the input."""

    x: np.ndarray
    x_label: str
    by: str  # what the gradient is by
    lines: dict[str, tuple[np.ndarray, np.ndarray, dict[str, Any]]]  # input, target (a row for each x) and options


@dataclass(frozen=True)
class Entry:
    """What the page says of a loss beyond its docstring."""

    group: str
    task: str
    use: str
    equivalents: dict[str, tuple[str, ...]]  # library: the names there, if any, and what differs
    figure: Callable[[], Figure]


# ---- pictures


def leads(lines: dict[str, dict[str, Any]], classes: int = 10, reach: float = 8) -> Figure:
    """One target class of several, whose other logits are 0."""
    x = np.linspace(-reach, reach, 401)
    logits = np.zeros((len(x), classes))
    logits[:, 0] = x
    target = np.zeros(len(x), int)
    label = f"target's logit, the {classes - 1} others being 0"
    return Figure(x, label, "the target's logit", {line: (logits, target, options) for line, options in lines.items()})


def elements(
    lines: dict[str, tuple[float, dict[str, Any]]], low: float = -5, high: float = 5, x: str = "logit"
) -> Figure:
    """One element, its target and options."""
    values = np.linspace(low, high, 401)
    column = values[:, None]
    return Figure(
        values,
        x,
        f"the {x}",
        {line: (column, np.full_like(column, target), options) for line, (target, options) in lines.items()},
    )


def log_probabilities(lines: dict[str, tuple[Any, dict[str, Any]]], targets: str) -> Figure:
    """Two classes with the probabilities x and 1 - x."""
    x = np.linspace(0.02, 0.98, 193)
    log_probs = np.log(np.stack([x, 1 - x], axis=1))
    rows = {
        line: (log_probs, np.array(len(x) * [target]), options)  # an index, or a distribution
        for line, (target, options) in lines.items()
    }
    return Figure(x, f"probability given to {targets}", "the log-probability", rows)


def regions(lines: dict[str, tuple[int, int, dict[str, Any]]], x_label: str = "% of the region found") -> Figure:
    """An image of 1000 pixels, in which a growing part of a region is found, and some pixels besides."""
    found = np.arange(50) / 50
    rows = {}
    for line, (size, false_positives, options) in lines.items():
        target = np.zeros((50, 1000))
        target[:, :size] = 1
        probs = np.zeros((50, 1000))
        for row, share in zip(probs, found, strict=True):
            row[size - round(share * size) : size + false_positives] = 1  # the first pixel is always missed
        rows[line] = probs, target, {"mode": "binary", "from_logits": False, "per_sample": True, **options}
    return Figure(100 * found, x_label, "a missed pixel's probability", rows)


def region_sizes() -> Figure:
    return regions(
        {
            "region of 100 pixels": (100, 0, {}),
            "region of 50 pixels": (50, 0, {}),
            "100 pixels, 50 false positives": (100, 50, {}),
            "100 pixels, 200 false positives": (100, 200, {}),
        }
    )


def one_pixel() -> Figure:
    """An image of 100 pixels, all right with a margin above 1 but for one, whose score is x where right is positive."""
    x = np.linspace(-3, 3, 401)
    rows = {}
    for line, size, missed in (
        ("missed, region of 1 pixel", 1, True),
        ("missed, region of 3 pixels", 3, True),
        ("missed, region of 10 pixels", 10, True),
        ("false positive, region of 1 pixel", 1, False),
    ):
        target = np.zeros((len(x), 100))
        target[:, :size] = 1
        if not missed:
            target = target[:, ::-1].copy()
        logits = np.where(target == 1, 3.0, -3.0)
        logits[:, 0] = x
        rows[line] = logits, target, {"mode": "binary", "per_sample": True}
    return Figure(x, "logit of one pixel, the others being right", "that logit", rows)


def labels_of_four() -> Figure:
    """Four classes, the first of which is a label and has the score x; the others' are 0."""
    x = np.linspace(-3, 3, 401)
    logits = np.zeros((len(x), 4))
    logits[:, 0] = x
    rows = {}
    for count in (1, 2, 3):
        target = [*range(count), *(4 - count) * [-1]]
        rows[f"{count} of 4 classes are labels"] = logits, np.array(len(x) * [target]), {}
    return Figure(x, "a label's score, the others' being 0", "that score", rows)


def one_of_two_labels() -> Figure:
    """Two labels, the second of which is right by far."""
    x = np.linspace(-5, 5, 401)
    logits = np.stack([x, np.full_like(x, 40)], axis=1)
    rows = {}
    for line, holds, options in (
        ("label that holds", 1, {}),
        ("label that does not hold", 0, {}),
        ("label that holds, its weight 2", 1, {"weight": [2.0, 1.0]}),
    ):
        rows[line] = logits, np.array(len(x) * [[holds, 1]]), options
    return Figure(x, "logit of one of two labels", "that logit", rows)


# ---- the losses

CLASSES, BINARY, MARGINS, OVERLAP, LOVASZ = GROUPS = (
    "Classification over classes",
    "Binary and multi-label",
    "Margins",
    "Overlap, for segmentation",
    "Lovász, for segmentation",
)

ENTRIES = {
    "cross_entropy": Entry(
        group=CLASSES,
        task="one class out of several: images, tokens, pixels",
        use="""Whenever each target is one class out of several, or a distribution over them: start here.
            `label_smoothing` makes a model less sure of itself, `weight` evens out rare classes, and `z_loss` and
            `softcap` keep the logits of large models from drifting.""",
        equivalents={
            "torch": (
                "torch.nn.functional.cross_entropy",
                "no `sample_weight`, `z_loss`, `softcap`, `axis`, `normalizer`, `empty`",
            ),
            "Keras": (
                "keras.losses.SparseCategoricalCrossentropy",
                "keras.losses.CategoricalCrossentropy",
                "`from_logits=True`; `ignore_class` for `ignore_index`; `label_smoothing` only in the second, for "
                "one-hot targets",
            ),
            "optax": (
                "optax.losses.softmax_cross_entropy_with_integer_labels",
                "optax.losses.softmax_cross_entropy",
                "one loss a row: take the mean",
            ),
            "segmentation_models.pytorch": (
                "segmentation_models_pytorch.losses.SoftCrossEntropyLoss",
                "`smooth_factor` for `label_smoothing`; its mean divides by the ignored targets as well",
            ),
        },
        figure=lambda: leads(
            {
                "defaults": {},
                "label_smoothing=0.1": {"label_smoothing": 0.1},
                "softcap=4": {"softcap": 4},
                "z_loss=0.05": {"z_loss": 0.05},
            }
        ),
    ),
    "focal_cross_entropy": Entry(
        group=CLASSES,
        task="one class out of several, most targets easy",
        use="""Where most targets are easy and together outweigh the hard ones, as background does. `gamma` sets how
            far easy targets are turned down. Try `fastloss.cross_entropy` first: its minimum lies at the true
            probabilities, a focal loss's does not.""",
        equivalents={
            "Keras": (
                "keras.losses.CategoricalFocalCrossentropy",
                "`from_logits=True` and `alpha=1` (its default multiplies by 0.25); one-hot targets",
            ),
            "MONAI": (
                "monai.losses.FocalLoss",
                "`use_softmax=True, to_onehot_y=True`; its mean divides by the number of classes as well",
            ),
            "segmentation_models.pytorch": (
                '`FocalLoss("multiclass")` is `fastloss.sigmoid_focal_loss` of one-hot targets with `alpha=None`',
            ),
        },
        figure=lambda: leads({f"gamma={gamma}": {"gamma": gamma} for gamma in (0, 1, 2, 5)}),
    ),
    "nll_loss": Entry(
        group=CLASSES,
        task="one class out of several, log-probabilities given",
        use="""Where the model gives log-probabilities itself, as a mixture or a table of them does. With logits use
            `fastloss.cross_entropy`. `fl.log_softmax` works on the last axis by default, this loss on axis 1.""",
        equivalents={
            "torch": ("torch.nn.functional.nll_loss", "no `sample_weight`, `axis`, `normalizer`, `empty`"),
            "Keras": ("keras.losses.SparseCategoricalCrossentropy", "takes probabilities, not their logs"),
        },
        figure=lambda: log_probabilities(
            {f"weight {weight} for the target": (0, {"weight": [weight, 1.0]}) for weight in (0.5, 1.0, 2.0)},
            "the target",
        ),
    ),
    "kl_div": Entry(
        group=CLASSES,
        task="a distribution, such as a teacher's",
        use="""To bring a model's distribution close to another one, in distillation for instance. It differs from
            `fastloss.cross_entropy` with probabilities by the target's entropy only, so their gradients by the logits
            agree. Use "batchmean", because "mean" divides by the number of classes as well.""",
        equivalents={
            "torch": ("torch.nn.functional.kl_div", "the same arguments"),
            "Keras": (
                "keras.losses.KLDivergence",
                'probabilities for both; its mean is "batchmean" of two-dimensional input',
            ),
            "optax": (
                "optax.losses.kl_divergence",
                "optax.losses.kl_divergence_with_log_targets",
                'sums over the last axis: the mean of that is "batchmean"',
            ),
        },
        figure=lambda: log_probabilities(
            {f"target probability {y}": ([y, 1 - y], {}) for y in (0.1, 0.5, 0.9)}, "the first of two classes"
        ),
    ),
    "binary_cross_entropy_with_logits": Entry(
        group=BINARY,
        task="yes or no, or several labels at once",
        use="""Whenever each element is a yes or no of its own: two classes, tags, masks. `pos_weight` counts positives
            more where they are rare.""",
        equivalents={
            "torch": ("torch.nn.functional.binary_cross_entropy_with_logits", "no `label_smoothing`, `ignore_index`"),
            "Keras": ("keras.losses.BinaryCrossentropy", "`from_logits=True`; no `pos_weight`"),
            "optax": ("optax.losses.sigmoid_binary_cross_entropy", "one loss an element: take the mean"),
            "segmentation_models.pytorch": (
                "segmentation_models_pytorch.losses.SoftBCEWithLogitsLoss",
                "`smooth_factor` is half of `label_smoothing`; its mean divides by the ignored elements as well",
            ),
        },
        figure=lambda: elements(
            {
                "target 1": (1, {}),
                "target 0": (0, {}),
                "target 1, pos_weight=3": (1, {"pos_weight": 3.0}),
                "target 1, label_smoothing=0.2": (1, {"label_smoothing": 0.2}),
            }
        ),
    ),
    "binary_cross_entropy": Entry(
        group=BINARY,
        task="yes or no, probabilities given",
        use="Where the model gives probabilities and the logits are out of reach.",
        equivalents={
            "torch": ("torch.nn.functional.binary_cross_entropy", "the same arguments"),
            "Keras": ("keras.losses.BinaryCrossentropy", "clips probabilities to [1e-7, 1 - 1e-7]"),
        },
        figure=lambda: elements(
            {"target 1": (1, {}), "target 0": (0, {}), "target 0.7": (0.7, {})}, 0.04, 0.96, "probability"
        ),
    ),
    "sigmoid_focal_loss": Entry(
        group=BINARY,
        task="yes or no, positives rare among easy negatives",
        use="""Detection and tagging, where thousands of easy negatives face a few positives. The default
            `alpha=0.25` weighs positives less than negatives and belongs to `gamma=2`: change both together, or give
            `alpha=None`.""",
        equivalents={
            "torch": (
                "torchvision.ops.sigmoid_focal_loss",
                '`reduction` is "none" by default; `alpha=-1` for `alpha=None`',
            ),
            "Keras": (
                "keras.losses.BinaryFocalCrossentropy",
                "`from_logits=True`; `apply_class_balancing=True`, without which `alpha` is not used",
            ),
            "optax": (
                "optax.losses.sigmoid_focal_loss",
                "`alpha` is None by default; one loss an element: take the mean",
            ),
            "segmentation_models.pytorch": (
                "segmentation_models_pytorch.losses.FocalLoss",
                "`alpha` is None by default; `mode` comes first",
            ),
            "MONAI": ("monai.losses.FocalLoss", "`alpha` is None by default"),
        },
        figure=lambda: elements(
            {f"target 1, alpha=None, gamma={gamma}": (1, {"alpha": None, "gamma": gamma}) for gamma in (0, 1, 2, 5)}
        ),
    ),
    "soft_margin_loss": Entry(
        group=BINARY,
        task="yes or no, with targets -1 and 1",
        use="Binary cross-entropy with logits for targets that are -1 and 1 already: logistic regression, boosting.",
        equivalents={"torch": ("torch.nn.functional.soft_margin_loss", "the same arguments; inf for large scores")},
        figure=lambda: elements({"target 1": (1, {}), "target -1": (-1, {})}, x="score"),
    ),
    "multilabel_soft_margin_loss": Entry(
        group=BINARY,
        task="several labels at once, one loss a sample",
        use="""As `fastloss.binary_cross_entropy_with_logits`, where "none" should give one loss a sample instead of
            one an element. Labels are on the last axis.""",
        equivalents={"torch": ("torch.nn.functional.multilabel_soft_margin_loss", "the same arguments")},
        figure=one_of_two_labels,
    ),
    "hinge_loss": Entry(
        group=MARGINS,
        task="yes or no by a margin, no probabilities wanted",
        use="""Support vector machines and rankings: what is right by more than the margin has no gradient at all. Its
            scores are not logits of probabilities.""",
        equivalents={
            "torch": ("`torch.nn.functional.hinge_embedding_loss` is another loss, of distances",),
            "Keras": ("keras.losses.Hinge", "`margin` is 1; targets 0 and 1 are converted"),
            "optax": ("optax.losses.hinge_loss", "`margin` is 1; one loss an element: take the mean"),
        },
        figure=lambda: elements(
            {
                "target 1, margin=1": (1, {}),
                "target -1, margin=1": (-1, {}),
                "target 1, margin=2": (1, {"margin": 2.0}),
                "target 1, margin=0.5": (1, {"margin": 0.5}),
            },
            -3,
            3,
            "score",
        ),
    ),
    "multi_margin_loss": Entry(
        group=MARGINS,
        task="one class out of several by a margin",
        use="""As `fastloss.hinge_loss`, for several classes: each other class has to stay behind the target by the
            margin. `p=2` punishes large errors more and has no kink.""",
        equivalents={
            "torch": ("torch.nn.functional.multi_margin_loss", "the same arguments"),
            "Keras": (
                "`keras.losses.CategoricalHinge` counts only the best of the other classes, and does not divide by C",
            ),
            "optax": (
                "`optax.losses.multiclass_hinge_loss` counts only the best of the other classes, and does not divide "
                "by C",
            ),
        },
        figure=lambda: leads(
            {
                "p=1, margin=1": {},
                "p=1, margin=2": {"margin": 2.0},
                "p=2, margin=1": {"p": 2},
            },
            classes=3,
            reach=3,
        ),
    ),
    "multilabel_margin_loss": Entry(
        group=MARGINS,
        task="several labels at once, ahead of all other classes",
        use="""Where every label should rank before every other class by a margin of 1, and each sample's labels come
            as a list of indices.""",
        equivalents={"torch": ("torch.nn.functional.multilabel_margin_loss", "the same arguments")},
        figure=labels_of_four,
    ),
    "dice_loss": Entry(
        group=OVERLAP,
        task="regions, judged by Dice (F1)",
        use="""Segmentation in which a small region counts as much as a large one, and the score is Dice.
            Confident errors have next to no gradient through the softmax, so train with the sum of this and
            `fastloss.cross_entropy`, by `fastloss.combine`.""",
        equivalents={
            "Keras": (
                "keras.losses.Dice",
                'probabilities and masks; `axis=(0, 2, 3)` for classes on axis 1, no `axis` for `mode="binary"`; '
                '`absent="count"` gives its numbers',
            ),
            "optax": (
                "optax.losses.dice_loss",
                '`per_sample=True, absent="count", smooth=1` give its numbers; classes last, one loss a sample',
            ),
            "segmentation_models.pytorch": ("segmentation_models_pytorch.losses.DiceLoss", "`mode` comes first"),
            "MONAI": (
                "monai.losses.DiceLoss",
                '`softmax=True, to_onehot_y=True`; `per_sample=True, absent="count", smooth=5e-6` give its numbers',
            ),
        },
        figure=region_sizes,
    ),
    "jaccard_loss": Entry(
        group=OVERLAP,
        task="regions, judged by intersection over union",
        use="""As `fastloss.dice_loss`, where the score is intersection over union. Both have the same minimum; this one
            rises more steeply at small errors.""",
        equivalents={
            "segmentation_models.pytorch": ("segmentation_models_pytorch.losses.JaccardLoss", "`mode` comes first"),
            "MONAI": (
                "monai.losses.DiceLoss",
                '`jaccard=True, softmax=True, to_onehot_y=True`; `per_sample=True, absent="count", smooth=5e-6` give '
                "its numbers",
            ),
        },
        figure=region_sizes,
    ),
    "tversky_loss": Entry(
        group=OVERLAP,
        task="regions, with misses worse than false alarms",
        use="""As `fastloss.dice_loss`, where false positives (`alpha`) and false negatives (`beta`) should not count
            the same: `beta` above `alpha` for lesions that must not be missed. 0.5 and 0.5 is Dice, 1 and 1
            Jaccard.""",
        equivalents={
            "Keras": (
                "keras.losses.Tversky",
                "as `keras.losses.Dice`; in Keras 3.15 `beta` multiplies the false positives and `alpha` the false "
                "negatives",
            ),
            "optax": ("optax.losses.dice_loss", "with its `alpha` and `beta`, see `fastloss.dice_loss`; no `gamma`"),
            "segmentation_models.pytorch": ("segmentation_models_pytorch.losses.TverskyLoss", "`mode` comes first"),
            "MONAI": (
                "monai.losses.TverskyLoss",
                '`softmax=True, to_onehot_y=True`; `per_sample=True, absent="count", smooth=1e-5` give its numbers; '
                "no `gamma`",
            ),
        },
        figure=lambda: regions(
            {
                "alpha=0.5, beta=0.5": (100, 50, {}),
                "alpha=0.3, beta=0.7": (100, 50, {"alpha": 0.3, "beta": 0.7}),
                "alpha=0.7, beta=0.3": (100, 50, {"alpha": 0.7, "beta": 0.3}),
                "alpha=0.3, beta=0.7, gamma=2": (100, 50, {"alpha": 0.3, "beta": 0.7, "gamma": 2}),
            },
            "pixels found of 100 (and 50 false positives)",
        ),
    ),
    "lovasz_loss": Entry(
        group=LOVASZ,
        task="regions, intersection over union itself, for fine-tuning",
        use="""To gain the last points of intersection over union after training with
            `fastloss.cross_entropy`, or in a sum with it. Where each probability is 0 or 1 it is exactly 1 - Jaccard.
            It sorts, so it takes longer than the other overlap losses.""",
        equivalents={
            "segmentation_models.pytorch": (
                "segmentation_models_pytorch.losses.LovaszLoss",
                "`mode` comes first; `per_image` for `per_sample`",
            ),
        },
        figure=one_pixel,
    ),
}

TOOLS = {
    "combine": "For the sums that segmentation is trained with. `monai.losses.DiceCELoss` is a sum of this kind.",
    "evaluate": "For the validation loop: loss and accuracies from one pass over the logits.",
    "predict": "For the answers of a trained model.",
    "diagnose": """Before the first step on new data, and whenever a loss does not fall.
        `FASTLOSS_DIAGNOSE=1` does it for the first batch of each place that calls a loss.""",
}

GUIDE = """
## Which one do I want?

- **One class a target** (an image, a token, a pixel): [`cross_entropy`](#cross_entropy). Two classes are two logits
  here, or one logit in the next.
- **Yes or no for each element** (several labels may hold at once):
  [`binary_cross_entropy_with_logits`](#binary_cross_entropy_with_logits).
- **Rare classes**: first `weight` or `pos_weight`, then the focal losses.
- **Segmentation with small regions**: [`dice_loss`](#dice_loss) plus [`cross_entropy`](#cross_entropy), by
  [`combine`](#combine).
- **A score instead of a probability** (ranking, support vector machines): [`hinge_loss`](#hinge_loss) or
  [`multi_margin_loss`](#multi_margin_loss).
- **A teacher's probabilities**: [`cross_entropy`](#cross_entropy) takes them as the target.

## Common mistakes

`fl.diagnose(logits, target, loss="cross_entropy")` finds these and others, and says what to do:

```pycon
>>> import numpy as np
>>> import fastloss as fl
>>> logits, labels = np.array([[9.0, 0.0, 0.0], [0.0, 4.0, 1.0]]), np.array([0, 1])
>>> [finding.code for finding in fl.diagnose(fl.softmax(logits), labels).findings]
['softmax_applied']

```

- **Softmax applied twice.** Losses take logits, unless their first argument has another name. A model that ends in a
  softmax or a sigmoid still learns, but slowly, and its loss stays high:

  ```pycon
  >>> f"{fl.cross_entropy(logits, labels):.4f}", f"{fl.cross_entropy(fl.softmax(logits), labels):.4f}"
  ('0.0331', '0.5724')

  ```

- **One-hot where indices belong.** Integer targets are indices, without the class axis; a one-hot array has to be
  floating, or go through `argmax`:

  ```pycon
  >>> one_hot = np.array([[1, 0, 0], [0, 1, 0]])
  >>> fl.cross_entropy(logits, one_hot)  # doctest: +ELLIPSIS
  Traceback (most recent call last):
    ...
  ValueError: target has the logits' shape (2, 3) and integer dtype int64, but class indices have shape (2,): ...
  >>> abs(fl.cross_entropy(logits, one_hot.argmax(axis=1)) - fl.cross_entropy(logits, one_hot.astype(float))) < 1e-12
  True

  ```

- **Logits where probabilities belong.** [`binary_cross_entropy`](#binary_cross_entropy) takes probabilities,
  [`nll_loss`](#nll_loss) and [`kl_div`](#kl_div) their logs, and the overlap losses take either, by `from_logits`:

  ```pycon
  >>> print(fl.diagnose(logits, one_hot, loss="binary_cross_entropy").findings[0])
  error: values lie in 0 to 9, but probabilities lie in [0, 1]: these seem to be logits (logits_for_probabilities)
    Use binary_cross_entropy_with_logits.

  ```

- **Zeros where -1 belongs.** [`hinge_loss`](#hinge_loss) and [`soft_margin_loss`](#soft_margin_loss) take -1 and 1, or
  booleans. A target of 0 would have no gradient.
- **The wrong axis.** Classes are on axis 1, as in torch. For channels or a vocabulary on the last axis, `axis=-1`.
"""

COMMON = """
A loss with `reduction="mean"` or `"sum"` is a Python `float` in double precision; `"none"` gives an array. With
`return_grad=True`, or with an `out_grad`, the result is `(loss, gradient)`, and the gradient is the one of the value
returned, by the first argument. Inputs are float32, float64, float16 or bfloat16, with any strides. Bad input raises
`ValueError`, `TypeError` or `IndexError`, before anything is written.

These arguments are those of every loss. Where its `reduction` says more, it stands with the loss.
"""

PICTURES_SHOW = """Pictures show the loss of one target, for overlap of one image, and its gradient by what stands above
    the panel. What it is called elsewhere holds for torch 2.13, torchvision, Keras 3.15, optax 0.2.8,
    segmentation_models.pytorch 0.6 and MONAI 1.6."""


# ---- the page


def check_entries() -> None:
    for name in LOSSES:
        if name not in ENTRIES:
            sys.exit(
                f"docs/build.py: {name} is in fastloss.catalogue.LOSSES but not in ENTRIES: "
                f'add ENTRIES["{name}"] = Entry(group, task, use, equivalents, figure) there'
            )
    for name in ENTRIES:
        if name not in LOSSES:
            sys.exit(f"docs/build.py: {name} is in ENTRIES but not in fastloss.catalogue.LOSSES: remove its entry")


def sections(function: Callable[..., Any]) -> dict[str, str]:
    """The parts of a docstring by their titles: "Summary", "Text" up to the first title, "Parameters", and so on."""
    start, *parts = re.split(r"^(\w+)\n-+\n", inspect.getdoc(function) or "", flags=re.M)
    summary, _, text = start.partition("\n\n")
    return {"Summary": summary, "Text": text, **dict(zip(parts[::2], parts[1::2], strict=True))}


def parameters(function: Callable[..., Any]) -> dict[str, str]:
    """What the docstring says of each argument."""
    meanings = {}
    for block in re.split(r"\n(?=\S)", sections(function)["Parameters"].strip()):
        names, _, meaning = block.partition("\n")
        for name in names.split(", "):
            meanings[name] = " ".join(meaning.split())
    return meanings


def inline(text: str) -> str:
    """Code in single backquotes, and links to what this page describes."""

    def link(match: re.Match[str]) -> str:
        name = match[1]
        return f"[`{name}`](#{name})" if name in ENTRIES or name in TOOLS else match[0]

    return re.sub(r"`fastloss\.(\w+)`", link, text.replace("``", "`"))


def markdown(text: str) -> str:
    """A docstring's text: formulas and examples become code blocks."""
    blocks = []
    for block in re.split(r"\n{2,}", text.strip("\n")):
        if block.startswith(">>>"):
            blocks.append(f"```pycon\n{block.replace('<BLANKLINE>', '')}\n```")
        elif block.startswith("    "):
            blocks.append(f"```\n{textwrap.dedent(block)}\n```")
        elif block != "::":
            blocks.append(inline(block.replace("::", ":")))
    return "\n\n".join(blocks)


def paragraph(text: str) -> str:
    return textwrap.fill(inline(" ".join(text.split())), 120, break_long_words=False, break_on_hyphens=False)


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, len(head) * ("---",), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def options(function: Callable[..., Any], names: list[str], meanings: dict[str, str]) -> str:
    rows = []
    for name in names:
        value = inspect.signature(function).parameters[name].default
        shown = json.dumps(value) if isinstance(value, str) else repr(value)
        default = "" if value is inspect.Parameter.empty else f"`{shown}`"
        rows.append((f"`{name}`", default, inline(meanings[name])))
    return table(("argument", "default", "meaning"), rows)


def common() -> dict[str, str]:
    """The options that all losses have, with what most of them say of each."""
    said = [parameters(function) for function in LOSSES.values()]
    signature = inspect.signature(LOSSES["cross_entropy"]).parameters.values()
    names = [option.name for option in signature if option.kind is option.KEYWORD_ONLY]
    return {
        name: Counter(each[name] for each in said).most_common(1)[0][0]
        for name in names
        if all(name in each for each in said)
    }


def loss_section(name: str, shared: dict[str, str]) -> str:
    entry, function = ENTRIES[name], LOSSES[name]
    parts, meanings = sections(function), parameters(function)
    own = [argument for argument in inspect.signature(function).parameters if argument not in shared]
    if meanings["reduction"] != shared["reduction"]:
        own.append("reduction")
    equivalents = [
        (library, " or ".join(f"`{each}`" for each in there), inline(differs))
        for library, (*there, differs) in entry.equivalents.items()
    ]
    return "\n\n".join(
        [
            f"### {name}",
            inline(parts["Summary"]),
            markdown(parts["Text"]),
            f"![{name}: the loss, and its gradient](losses/{name}.png)",
            paragraph(f"**When.** {entry.use}"),
            options(function, own, meanings),
            f"**Shapes.** {markdown(parts['Shape'])}",
            f"**Notes.** {markdown(parts['Notes'])}",
            table(("elsewhere", "name", "what differs there"), equivalents),
            markdown(parts["Examples"]),
        ]
    )


def page() -> str:
    check_entries()
    shared = common()
    ordered = sorted(ENTRIES, key=lambda name: GROUPS.index(ENTRIES[name].group))
    parts = [
        "<!-- Written by docs/build.py from the docstrings: change those, or its table, and run it. -->",
        "# Losses",
        table(("task", "loss"), [(ENTRIES[name].task, f"[`{name}`](#{name})") for name in ordered]),
        GUIDE.strip(),
        "## Arguments of all losses",
        COMMON.strip(),
        options(LOSSES[ordered[0]], list(shared), shared),
        paragraph(PICTURES_SHOW),
    ]
    for group in GROUPS:
        parts.append(f"## {group}")
        parts += [loss_section(name, shared) for name in ordered if ENTRIES[name].group == group]
    parts.append("## With the losses")
    for name, use in TOOLS.items():
        text = sections(getattr(fl, name))
        parts += [f"### {name}", inline(text["Summary"]), markdown(text["Text"]), paragraph(use)]
        parts.append(markdown(text["Examples"]))
    return "\n\n".join(parts) + "\n"


# ---- drawing

# Okabe and Ito's colours, which differ for colour-blind readers too, each with its own dashes
LINES = (("#0072B2", "-"), ("#D55E00", "--"), ("#009E73", "-."), ("#CC79A7", ":"))

STYLE = {
    "font.size": 11,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "grid.color": "#dddddd",
    "lines.linewidth": 2,
    "figure.facecolor": "white",
    "legend.frameon": False,
}


def draw(name: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from PIL import Image  # comes with matplotlib

    figure = ENTRIES[name].figure()
    with plt.rc_context(STYLE):
        canvas, (left, right) = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
        for (color, dashes), (label, (first, target, given)) in zip(LINES, figure.lines.items(), strict=False):
            loss, grad = LOSSES[name](first, target, reduction="none", return_grad=True, engine="reference", **given)
            losses = loss.reshape(len(figure.x), -1).sum(axis=1)
            left.plot(figure.x, losses, color=color, linestyle=dashes, label=label)
            right.plot(figure.x, grad[:, 0], color=color, linestyle=dashes)
        left.set(xlabel=figure.x_label, title="loss")
        right.set(xlabel=figure.x_label, title=f"gradient by {figure.by}")
        canvas.legend(loc="outside upper center", ncols=2 if len(figure.lines) != 3 else 3)
        PICTURES.mkdir(exist_ok=True)
        drawn = io.BytesIO()
        canvas.savefig(drawn, dpi=150)
        plt.close(canvas)
        Image.open(drawn).convert("RGB").quantize(64).save(PICTURES / f"{name}.png", optimize=True)  # a third the size


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only say whether the page is up to date")
    check = parser.parse_args(arguments).check
    text = page()
    if check:
        if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text:
            print("docs/losses.md is not what docs/build.py writes: run `python docs/build.py`", file=sys.stderr)
            return 1
        return 0
    for name in ENTRIES:
        draw(name)
    PAGE.write_text(text, encoding="utf-8", newline="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
