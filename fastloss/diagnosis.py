"""What is probably wrong with a batch, in words, before someone trains on it for a day."""

from __future__ import annotations

import math
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from fastloss import validate
from fastloss.catalogue import DOMAINS, Domain

if TYPE_CHECKING:
    from fastloss.validate import Array, Index, NDArray

Severity: TypeAlias = Literal["error", "warning", "note"]

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")  # the most severe first
SAMPLE = 2**20  # about how many logits are looked at

# exp(-88) is where float32 runs out of normal numbers.
_SATURATED = 88.0
# Below this a finite logit is taken for a mask (-1e4, -65504, -1e9), not for something a model computed.
_MASK = -9999.0
# Too few targets say nothing about how frequent a class is.
_ENOUGH = 32
_TOO_MANY_CLASSES = 1000  # for a weight vector to be of use

_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep


class DiagnosisWarning(UserWarning):
    """Issued where FASTLOSS_DIAGNOSE=1 and the first batch of a call looks wrong.

    >>> import warnings
    >>> import fastloss as fl
    >>> warnings.simplefilter("error", fl.DiagnosisWarning)  # stop instead
    """


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is probably wrong with a batch, or worth knowing.

    >>> import numpy as np
    >>> import fastloss as fl
    >>> fl.diagnose(np.zeros((2, 3)), np.array([1, 3])).findings[0].severity
    'error'
    """

    severity: Severity
    code: str  # a fixed name, for programs
    message: str
    suggestion: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.message} ({self.code})\n  {self.suggestion}"


@dataclass(frozen=True, slots=True, repr=False)
class Diagnosis:
    """What `diagnose` found, the most severe first. True where something is wrong: an error or a warning.

    >>> import numpy as np
    >>> import fastloss as fl
    >>> bool(fl.diagnose(np.zeros((2, 3)), np.array([1, 3])))
    True
    """

    findings: tuple[Finding, ...]
    looked_at: str

    def __bool__(self) -> bool:
        return any(finding.severity != "note" for finding in self.findings)

    def __str__(self) -> str:
        if not self.findings:
            return f"nothing suspicious found\nlooked at: {self.looked_at}"
        return "\n\n".join([*map(str, self.findings), f"looked at: {self.looked_at}"])

    def __repr__(self) -> str:
        codes = ", ".join(f"{finding.severity} {finding.code}" for finding in self.findings)
        return f"<Diagnosis: {codes or 'nothing suspicious found'}>"


_OPTIONS = ("axis", "ignore_index", "weight", "mode", "from_logits", "log_target")


def diagnose(
    logits: Array,
    target: Array,
    *,
    loss: str = "cross_entropy",
    axis: Index = 1,
    ignore_index: Index | None = None,
    weight: Array | None = None,
    mode: str = "multiclass",
    from_logits: bool = True,
    log_target: bool = False,
) -> Diagnosis:
    r"""What is probably wrong with a batch, in words.

    Looks for softmax or sigmoid applied before a loss that takes logits, for labels of the wrong kind, shape or range,
    for NaN, for targets that are all ignored, for classes on another axis, and the like.

    Parameters
    ----------
    logits
        The first argument of the loss: logits, or for some losses probabilities or their logs.
    target
        The targets of the loss.
    loss
        Name of the loss that the batch is for.
    axis, ignore_index, weight, mode, from_logits, log_target
        As the loss takes them; those that it does not take have no effect.

    Returns
    -------
    Diagnosis
        ``findings``, a tuple of `Finding` with ``severity``, ``code``, ``message`` and ``suggestion``, the most severe
        first. True where there is an error or a warning; printed, it is a report.

        An "error" is a batch for which the loss raises, is not finite, or means nothing; a "warning" is probably a
        mistake; a "note" is worth knowing.

    Errors
    ------
    TypeError for what is not an array of numbers. ValueError for the name of a loss or a mode that there is not. A
    batch that the loss would refuse, for its shapes for instance, is a finding.

    Notes
    -----
    All class indices are looked at. Of logits, and of targets of their shape, about 2**20 elements are, in whole rows
    that are spread evenly over the batch; ignored rows are left out.

    With FASTLOSS_DIAGNOSE=1 in the environment the losses diagnose the first batch of each place that calls them, and
    issue one `DiagnosisWarning` there if something is wrong.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss as fl
    >>> logits = np.array([[2.0, 0.1, 0.4], [1.0, 8.0, -1.0]])
    >>> print(fl.diagnose(fl.softmax(logits), [1, 3]))
    error: all labels lie in 1 to 3, but 3 classes are numbered 0 to 2 (labels_off_by_one)
      Subtract 1: target - 1.
    <BLANKLINE>
    warning: every row lies in [0, 1] and sums to 1: softmax seems to be applied already (softmax_applied)
      Give the logits themselves: cross_entropy applies softmax.
    <BLANKLINE>
    looked at: 2 of 2 rows of 3 classes, 2 labels
    >>> bool(fl.diagnose(logits, [1, 2]))
    False
    """
    expected = _expected(loss, mode, from_logits)
    check = _Check(
        loss=loss,
        expected=expected,
        logits=_readable("logits", logits),
        target=_readable("target", target),
        axis=validate._index("axis", axis),
        ignore_index=expected.ignore_index if ignore_index is None else validate._index("ignore_index", ignore_index),
        weight=None if weight is None else _readable("weight", weight),
        mode=mode,
        log_target=bool(log_target),
    )
    with np.errstate(all="ignore"):
        check.run()
    return Diagnosis(tuple(sorted(check.findings, key=lambda each: SEVERITIES.index(each.severity))), check.looked_at)


_checked: set[tuple[str, str, int]] = set()  # the calls whose first batch has been seen: loss, file and line


def check_first(name: str, logits: Any, target: Any, options: Mapping[str, Any]) -> None:
    """Warns of what is wrong with the first batch that a line outside of fastloss gives to this loss."""
    frame: FrameType = sys._getframe()
    level = 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
        level += 1
    place = (name, frame.f_code.co_filename, frame.f_lineno)
    if place in _checked:
        return
    _checked.add(place)
    try:
        diagnosis = diagnose(logits, target, loss=name, **{key: options[key] for key in _OPTIONS if key in options})
    except Exception:  # the loss itself says what it can't take
        return
    if diagnosis:
        wrong = Diagnosis(tuple(each for each in diagnosis.findings if each.severity != "note"), diagnosis.looked_at)
        warnings.warn(f"fastloss.{name}, first batch of this call\n\n{wrong}\n", DiagnosisWarning, stacklevel=level)


def _expected(loss: Any, mode: Any, from_logits: Any) -> Domain:
    validate.choice("loss", loss, tuple(DOMAINS))
    validate.choice("mode", mode, ("multiclass", "multilabel", "binary"))
    if not DOMAINS[loss].regions:
        return DOMAINS[loss]
    return Domain(
        "logits" if from_logits else "probabilities",
        "indices" if mode == "multiclass" else "zeros and ones",
        regions=True,
    )


def _readable(name: str, value: Any) -> NDArray:
    try:
        array = validate._array(name, value)
    except (TypeError, ValueError) as error:
        raise TypeError(str(error)) from error
    if not (array.dtype.kind in "biufc" or validate._is_float(array.dtype)):
        raise TypeError(f"{name} must be an array of numbers, not {validate._describe(value)}")
    return array


@dataclass(slots=True, eq=False)
class _Check:
    """One batch, and what is found about it."""

    loss: str
    expected: Domain
    logits: NDArray
    target: NDArray
    axis: int
    ignore_index: int | None
    weight: NDArray | None
    mode: str
    log_target: bool
    findings: list[Finding] = field(default_factory=list)
    looked_at: str = ""

    @property
    def tolerance(self) -> float:
        return _tolerance(self.logits.dtype)

    def add(self, severity: Severity, code: str, message: str, suggestion: str) -> None:
        self.findings.append(Finding(severity, code, message, suggestion))

    def error(self, code: str, message: str, suggestion: str) -> None:
        self.add("error", code, message, suggestion)

    def warning(self, code: str, message: str, suggestion: str) -> None:
        self.add("warning", code, message, suggestion)

    def note(self, code: str, message: str, suggestion: str) -> None:
        self.add("note", code, message, suggestion)

    def run(self) -> None:
        self.looked_at = f"shapes and dtypes, logits {self.logits.shape} and target {self.target.shape}"
        if not self._check_dtypes():
            return
        if self.expected.target in ("zeros and ones", "signs"):
            self._check_elements()
        else:
            self._check_rows()

    def _check_dtypes(self) -> bool:
        """Whether the values can be looked at."""
        logits, target = self.logits, self.target
        if target.dtype.kind == "c":
            self.error("target_dtype", f"target is {target.dtype.name}: no loss takes that", "Give real numbers.")
        if validate.is_supported_float(logits.dtype):
            return bool(target.dtype.kind != "c")
        if logits.dtype.kind in "biu" and validate._is_float(target.dtype):
            self.error(
                "swapped",
                f"logits are {logits.dtype.name} and the target is {target.dtype.name}: the two seem to be swapped",
                f"The logits come first: {self.loss}(logits, target).",
            )
        else:
            self.error(
                "logits_dtype",
                f"logits are {logits.dtype.name}, not float32, float64, float16 or bfloat16",
                "Give what the model computes before argmax or a threshold, or convert: logits.astype(np.float32).",
            )
        return False

    # Losses over an axis of classes

    def _check_rows(self) -> None:
        if self.loss == "kl_div":
            self.axis = self._axis_of_distributions()
        logits, shape = self.logits, self.logits.shape
        if logits.ndim == 0 or (logits.ndim > 1 and not -logits.ndim <= self.axis < logits.ndim):
            self.error(
                "logits_shape",
                f"logits of shape {shape} have no axis {self.axis}, which is said to hold the classes",
                "Say which axis holds the classes: axis=-1 for the last.",
            )
            return
        axis = self.axis = 0 if logits.ndim == 1 else self.axis % logits.ndim
        classes = shape[axis]
        if classes == 0:
            self.error("logits_shape", f"logits of shape {shape} have no classes on axis {axis}", "See axis=.")
            return
        self._check_class_weight(classes)
        row_shape = validate.row_shape(logits, axis)
        rows = math.prod(row_shape)
        if rows == 0:
            self.error("empty", f"logits of shape {shape} have no rows: a mean over nothing is NaN", "Skip the batch.")
            return

        labels = self._labels(row_shape)
        has_distributions = self.target.shape == shape and self.expected.target.endswith("probabilities")
        if labels is not None:
            counted = np.flatnonzero(labels != self.ignore_index) if self.ignore_index is not None else np.arange(rows)
            self._check_labels(labels, classes)
        else:
            counted = np.arange(rows)
        picked = counted[_spread(len(counted), max(1, SAMPLE // classes))]
        self.looked_at = f"{len(picked):,} of {rows:,} rows of {_number(classes, 'class', 'classes')}" + (
            f", {_number(labels.size, 'label')}" if labels is not None else ""
        )
        if len(picked) == 0:
            return
        values = _rows(logits, axis, picked)
        self._check_values(values, lambda row, c: self._position(row_shape, int(picked[row]), c))
        self._check_class_values(values)
        if labels is not None:
            self._check_masked_targets(values, labels.ravel()[picked], picked, row_shape)
        elif has_distributions and validate._is_float(self.target.dtype):
            self._check_distributions(_rows(self.target, axis, picked), values)
        elif self.expected.target == "index lists" and self.target.shape == shape:
            self._check_index_lists(_rows(self.target, axis, picked), classes)

    def _axis_of_distributions(self) -> int:
        """kl_div has no class axis: the one along which the input or the target are distributions, else the last."""
        for axis in range(self.logits.ndim - 1, -1, -1):
            rows = self.logits.size // max(1, self.logits.shape[axis])
            if rows and self.logits.shape[axis] > 1:
                sums = np.exp(_rows(self.logits, axis, _spread(rows, 64))).sum(axis=1)
                if (abs(sums - 1) <= 0.1).all():
                    return axis
        return -1

    def _labels(self, row_shape: tuple[int, ...]) -> NDArray | None:
        """The class indices, where that is what the target holds."""
        target, shape, axis = self.target, self.logits.shape, self.axis
        dtype = target.dtype
        wants_indices = self.expected.target.startswith("indices")
        if target.shape == row_shape and wants_indices:
            if dtype.kind in "iu":
                return target
            if dtype.kind == "b":
                self.error(
                    "boolean_labels",
                    "target is boolean, but class indices are integers",
                    "Convert: target.astype(np.int64); for one logit an example use binary_cross_entropy_with_logits.",
                )
                return target.astype(np.int64)
            with_fractions = not bool((target == np.floor(target.astype(np.float64))).all())
            self.error(
                "float_labels",
                f"target has the shape of class indices, {row_shape}, but dtype {dtype.name}"
                + (" and values that are not whole numbers" if with_fractions else ""),
                "For probabilities of one class use binary_cross_entropy_with_logits; to predict numbers use a "
                "regression loss."
                if with_fractions
                else "Convert: target.astype(np.int64).",
            )
            return None if with_fractions else target.astype(np.int64)
        if target.shape == shape:
            self._check_full_target()
            return None
        if target.shape == row_shape and self.expected.target == "probabilities":
            self.error(
                "indices_for_probabilities",
                f"target has the shape of class indices, {row_shape}, but {self.loss} takes probabilities, {shape}",
                f"Use cross_entropy, or one-hot rows: np.eye({shape[axis]})[target].",
            )
            return None
        self._check_wrong_shape(row_shape)
        return None

    def _check_full_target(self) -> None:
        """A target with the logits' shape, where that may be wrong."""
        dtype, axis = self.target.dtype, self.axis
        if self.expected.target == "indices":
            self.error(
                "one_hot_labels",
                f"target has the logits' shape {self.logits.shape}, but {self.loss} takes class indices",
                f"For one-hot rows: target.argmax(axis={axis}).",
            )
        elif self.expected.target == "index lists":
            if dtype.kind not in "iu":
                self.error(
                    "label_list_dtype",
                    f"target is {dtype.name}, but {self.loss} takes lists of class indices that end in -1",
                    "Convert to integers; for a mask of zeros and ones use multilabel_soft_margin_loss.",
                )
        elif not validate._is_float(dtype):
            some = _rows(self.target, axis, _spread(self.target.size // self.logits.shape[axis], 1024))
            if _is_zero_one(some) and (some.sum(axis=1) > 1).any():
                suggestion = "Rows hold several ones: for many labels at once use binary_cross_entropy_with_logits."
            else:
                suggestion = f"For one-hot rows: target.argmax(axis={axis}), or target.astype(np.float32)."
            self.error(
                "one_hot_labels",
                f"target has the logits' shape {self.logits.shape} and dtype {dtype.name}: class indices have no class "
                "axis, and probabilities are floating",
                suggestion,
            )

    def _check_wrong_shape(self, row_shape: tuple[int, ...]) -> None:
        target, logits, axis = self.target, self.logits, self.axis
        wanted = {
            "indices": f"{row_shape}",
            "indices or probabilities": f"{row_shape}, or {logits.shape} for probabilities",
        }.get(self.expected.target, f"{logits.shape}")
        message = f"target has shape {target.shape}, but logits {logits.shape} with class axis {axis} need {wanted}"
        if self.expected.target.startswith("indices"):
            fitting = [other for other in range(logits.ndim) if validate.row_shape(logits, other) == target.shape]
            if fitting:
                other = -1 if fitting[-1] == logits.ndim - 1 else fitting[-1]
                self.error(
                    "class_axis",
                    f"{message}; it fits classes on axis {fitting[-1]}",
                    f"If those are the classes: axis={other}.",
                )
                return
            if target.size and _squeezed(target.shape) == _squeezed(row_shape):
                self.error(
                    "extra_axis",
                    f"{message}; they differ in axes of length 1",
                    f"Reshape: target.reshape({row_shape}).",
                )
                return
        self.error("target_shape", message, "Check how batches are put together, and axis=.")

    def _check_labels(self, labels: NDArray, classes: int) -> None:
        ignore = self.ignore_index
        counts_for_something = np.ones(labels.shape, bool) if ignore is None else labels != ignore
        counted = labels[counts_for_something]
        ignored = labels.size - counted.size
        if counted.size == 0:
            self.error(
                "all_ignored",
                f"all of {_number(labels.size, 'target')} are {ignore}, which is ignored: a mean over nothing is NaN",
                "Check where the labels come from; where such batches must be: empty='zero'.",
            )
            return
        if labels.size >= 100 and ignored > 0.9 * labels.size:
            self.add(
                "warning" if ignored > 0.99 * labels.size else "note",
                "nearly_all_ignored",
                f"{ignored:,} of {labels.size:,} targets are {ignore}, which is ignored; {counted.size:,} count",
                "Check how targets are masked, and whether batches could be packed.",
            )
        low, high = int(counted.min()), int(counted.max())
        is_bad = (labels < 0) | (labels >= classes)
        is_bad &= counts_for_something
        if is_bad.any():
            self._add_bad_labels(labels, is_bad, low, high, classes)
            counted = labels[counts_for_something & ~is_bad]
            if counted.size == 0:
                return
        elif classes > 1 and low == high:
            self._add_single_class(f"every label that counts is {low}", counted.size)
        if self.weight is None:
            if not self.expected.regions and 2 <= classes <= _TOO_MANY_CLASSES and low < high:
                self._check_balance(np.bincount(counted.astype(np.int64), minlength=classes))
        elif self.weight.shape == (classes,) and not self.weight[counted.astype(np.int64)].any():
            self.error(
                "zero_weight", "every class that occurs has weight 0: a mean over nothing is NaN", "Check the weights."
            )

    def _add_bad_labels(self, labels: NDArray, is_bad: NDArray, low: int, high: int, classes: int) -> None:
        bad = labels[is_bad]
        value, range_text = int(bad[0]), f"{classes} classes are numbered 0 to {classes - 1}"
        if low >= 1 and high == classes:
            self.error(
                "labels_off_by_one", f"all labels lie in 1 to {classes}, but {range_text}", "Subtract 1: target - 1."
            )
        elif (bad == value).all() and (value in (-1, -100, 255) or bad.size > 1) and value != classes:
            self.error(
                "unnamed_ignore_index",
                f"{_number(bad.size, 'label')} {'is' if bad.size == 1 else 'are'} {value}, but {range_text}"
                + ("" if self.ignore_index is None else f", and ignore_index is {self.ignore_index}"),
                f"If {value} marks targets that do not count: ignore_index={value}.",
            )
        else:
            first = np.unravel_index(int(np.argmax(is_bad)), labels.shape)
            self.error(
                "label_out_of_range",
                f"{_index_text('target', first)} is {value}, but {range_text}; {bad.size:,} of {labels.size:,} labels "
                f"are outside, and all lie in {low} to {high}",
                "Check the number of classes of the model, and how labels are numbered.",
            )

    def _add_single_class(self, message: str, count: int) -> None:
        if count >= _ENOUGH:
            self.add(
                "warning" if self.target.ndim == 1 else "note",
                "single_class",
                f"{message} ({_number(count, 'target')})",
                "Shuffle the examples, and check how labels are read.",
            )

    def _check_balance(self, counts: NDArray) -> None:
        classes, total = len(counts), int(counts.sum())
        absent = np.flatnonzero(counts == 0)
        if total < 20 * classes:
            return
        most, least = int(counts.argmax()), int(np.where(counts == 0, total, counts).argmin())
        if not absent.size and counts[most] < 10 * counts[least]:
            return
        message = f"class {most} is {counts[most]:,} of {total:,} targets, class {least} is {counts[least]:,}"
        if absent.size:
            message += f"; {_some(absent)} {'does' if absent.size == 1 else 'do'} not occur"
        weight = np.where(counts == 0, 1.0, total / (classes * np.maximum(counts, 1)))
        suggestion = "n / (classes * count) balances them"
        if classes <= 20:
            suggestion = f"weight=[{', '.join(f'{each:.3g}' for each in weight)}] balances them: n / (classes * count)"
        self.note(
            "class_imbalance",
            message,
            suggestion + (", 1 where a class is absent" if absent.size else "") + "; count over all the data.",
        )

    def _check_class_weight(self, classes: int) -> None:
        if self.weight is None or self.loss in ("kl_div", "multilabel_margin_loss"):
            return
        if self.weight.shape != (classes,):
            self.error(
                "weight_shape",
                f"weight has shape {self.weight.shape}, but {_number(classes, 'class', 'classes')} need one entry each",
                f"Give shape ({classes},), and see axis=.",
            )
        self._check_weight_values()

    def _check_weight_values(self) -> None:
        assert self.weight is not None
        weight = self.weight.astype(np.float64)
        if not np.isfinite(weight).all():
            self.error("weight_values", "weight holds NaN or inf", "Is a count of 0 the cause? Clip the counts.")
        elif (weight < 0).any():
            self.warning("weight_values", "weight holds negative numbers", "Is the logarithm of a count meant?")

    def _check_class_values(self, values: NDArray) -> None:
        """Rows of logits, log-probabilities or probabilities, as the loss expects them."""
        classes, tolerance = values.shape[1], self.tolerance
        usable = ~(np.isnan(values) | (values == np.inf)).any(axis=1)
        is_masked = (values == -np.inf).all(axis=1)
        if (is_masked & usable).any():
            self.error(
                "all_minus_inf",
                f"{_number(int(is_masked.sum()), 'row')} hold nothing but -inf: the loss is NaN",
                "A mask seems to leave no class; leave one, or ignore such rows.",
            )
        values = values[usable & ~is_masked]
        if not values.size:
            return
        if classes == 1:
            self.warning(
                "one_class",
                f"there is one class on axis {self.axis}: its softmax is always 1",
                "For one logit an example use binary_cross_entropy_with_logits, and see axis=.",
            )
            return
        low, high = float(values.min()), float(values.max())
        sums = values.sum(axis=1)
        in_unit_interval = low >= 0 and high <= 1 + tolerance
        are_probabilities = in_unit_interval and bool((abs(sums - 1) <= tolerance).all())
        exp_sums = np.exp(np.minimum(values, 1.0)).sum(axis=1)  # past 1 the sum is far from 1 anyway
        log_tolerance = tolerance * (1 + math.log(classes))  # logs are larger, and rounded more coarsely
        are_logs = high <= log_tolerance and bool((abs(exp_sums - 1) <= log_tolerance).all())

        if self.expected.input == "log-probabilities":
            if are_probabilities:
                self.error(
                    "softmax_applied",
                    "every row lies in [0, 1] and sums to 1: these seem to be probabilities",
                    f"{self.loss} takes their logs: log_softmax in place of softmax.",
                )
            elif high > log_tolerance:
                self.error(
                    "logits_for_log_probabilities",
                    f"values reach {high:.4g}, but the log of a probability is at most 0: these seem to be logits",
                    "Use cross_entropy, or apply log_softmax first.",
                )
            elif np.mean(abs(exp_sums - 1) > 0.01 + log_tolerance) > 0.5:
                self.warning(
                    "not_normalized",
                    f"exp of a row should sum to 1, but sums lie in {exp_sums.min():.3g} to {exp_sums.max():.3g}",
                    f"Apply log_softmax over the classes, and see whether they are on axis {self.axis}.",
                )
            return
        if self.expected.input == "probabilities":
            if not in_unit_interval:
                self._add_not_probabilities(low, high)
            elif np.mean(abs(sums - 1) > 0.01 + tolerance) > 0.5:
                self.warning(
                    "not_normalized",
                    f"probabilities of a row should sum to 1, but sums lie in {sums.min():.3g} to {sums.max():.3g}",
                    f"Apply softmax over the classes, and see whether they are on axis {self.axis}.",
                )
            return

        if values.size >= 4 and bool((values == values[:, :1]).all()):
            self._add_constant(low, high)
        elif are_probabilities:
            self.warning(
                "softmax_applied",
                "every row lies in [0, 1] and sums to 1: softmax seems to be applied already",
                "Give the logits themselves: " + self._what_is_applied("softmax"),
            )
        elif in_unit_interval and values.size >= 64 and high - low >= 0.5:
            self.warning(
                "sigmoid_applied",
                f"all values lie in [0, 1], {low:.3g} to {high:.3g}: sigmoid seems to be applied already",
                "Give the logits themselves; for many labels at once use binary_cross_entropy_with_logits.",
            )
        elif are_logs and not self.expected.regions:
            self.note(
                "log_softmax_applied",
                "exp of every row sums to 1: log_softmax seems to be applied already",
                "No harm is done, but it takes time: give the logits, or use nll_loss.",
            )
        top = np.partition(values, classes - 2, axis=1)[:, -2:]
        gap = top[:, 1] - top[:, 0]
        masked = (top[:, 0] <= _MASK) & (top[:, 1] > _MASK) & (abs(top[:, 1]) < -_MASK)
        self._check_saturation((gap > _SATURATED) & ~masked, "rows", "the largest logit leads by more than 88")

    def _what_is_applied(self, function: str) -> str:
        return f"{self.loss} applies {function}." if "margin" not in self.loss else f"{self.loss} takes any scores."

    def _add_not_probabilities(self, low: float, high: float) -> None:
        self.error(
            "logits_for_probabilities",
            f"values lie in {low:.4g} to {high:.4g}, but probabilities lie in [0, 1]: these seem to be "
            + ("logs of probabilities" if high <= 0 else "logits"),
            "Use binary_cross_entropy_with_logits."
            if self.loss == "binary_cross_entropy"
            else "Use from_logits=True, or apply softmax or sigmoid first.",
        )

    def _add_constant(self, low: float, high: float) -> None:
        is_zero = low == high == 0
        self.add(
            "note" if is_zero else "warning",
            "constant_logits",
            "all logits are 0" if is_zero else "all logits of a row are equal",
            "A model whose last layer starts at 0 gives that at the first step; later it means that nothing is learnt.",
        )

    def _check_saturation(self, saturated: NDArray, noun: str, message: str) -> None:
        share = float(saturated.mean())
        if share > 0.1:
            self.warning(
                "saturated_logits",
                f"in {share:.0%} of the {noun} {message}: in float32 its exp leaves nothing for the others",
                "Scale the model's input or its last layer's weights, or lower the learning rate.",
            )

    def _check_masked_targets(
        self, values: NDArray, labels: NDArray, picked: NDArray, row_shape: tuple[int, ...]
    ) -> None:
        """A label whose logit is -inf."""
        if self.expected.regions:
            return
        inside = (labels >= 0) & (labels < values.shape[1])
        of_label = values[np.arange(len(values)), np.where(inside, labels, 0).astype(np.int64)]
        impossible = inside & (of_label == -np.inf) & (values > -np.inf).any(axis=1)
        if impossible.any():
            first = int(np.argmax(impossible))
            self.error(
                "impossible_target",
                f"in {_number(int(impossible.sum()), 'row')} the logit of the label is -inf, first at "
                f"{self._position(row_shape, int(picked[first]), int(labels[first]))}: the loss is inf",
                "A mask seems to cover the label; check the mask, or ignore such rows.",
            )

    def _check_distributions(self, target: NDArray, values: NDArray) -> None:
        if self.log_target:
            target = np.exp(target)
        if self._has_nan_target(target):
            return
        tolerance = max(1e-3, _tolerance(self.target.dtype))
        low, high = float(target.min()), float(target.max())
        if low < -tolerance or high > 1 + tolerance:
            is_log = not self.log_target and bool((abs(np.exp(np.minimum(target, 1)).sum(axis=1) - 1) < 0.01).all())
            self.error(
                "target_outside_0_1",
                f"target holds {low:.4g} to {high:.4g}, but probabilities lie in [0, 1]",
                ("These are logs" + ("; say log_target=True" if self.loss == "kl_div" else "") + ": apply exp.")
                if is_log
                else "For soft labels from another model apply softmax to its logits.",
            )
            return
        off = abs(target.sum(axis=1) - 1) > tolerance
        if off.any():
            other = self._axis_of_target()
            sums = target.sum(axis=1)
            message = (
                f"in {int(off.sum()):,} of {len(off):,} rows the target's probabilities do not sum to 1: sums lie in "
                f"{sums.min():.3g} to {sums.max():.3g}"
            )
            if other is not None:
                self.warning(
                    "class_axis",
                    f"{message}; along axis {other} they do",
                    f"If those are the classes: axis={other}." if self.loss != "kl_div" else "Check the layout.",
                )
            elif _is_zero_one(target):
                self.warning(
                    "target_sums",
                    message,
                    "For many labels at once use binary_cross_entropy_with_logits; else give each row one 1.",
                )
            else:
                self.warning("target_sums", message, "Divide by the sums over the class axis.")
        elif self.loss != "kl_div" and target.shape[1] > 1 and _is_zero_one(target):
            self.note(
                "one_hot_probabilities",
                "every row of the target is one-hot",
                f"Class indices give the same loss and take less time: target.argmax(axis={self.axis}).",
            )
        has_classes = np.any(values > -np.inf, axis=1, keepdims=True)
        if np.any((values == -np.inf) & (target > 0) & has_classes):
            self.error(
                "impossible_target",
                "a class with logit -inf has a probability above 0 in the target: the loss is inf",
                "A mask seems to cover the label; check the mask.",
            )

    def _axis_of_target(self) -> int | None:
        """Another axis along which the target is a distribution."""
        for axis in range(self.target.ndim - 1, -1, -1):
            if axis != self.axis and self.target.shape[axis] > 1:
                some = _rows(self.target, axis, _spread(self.target.size // self.target.shape[axis], 1024))
                if (abs((np.exp(some) if self.log_target else some).sum(axis=1) - 1) <= 0.01).all():
                    return axis
        return None

    def _check_index_lists(self, target: NDArray, classes: int) -> None:
        if self.target.dtype.kind not in "iu":
            return
        low, high = int(target.min()), int(target.max())
        if low < -1 or high >= classes:
            self.error(
                "label_out_of_range",
                f"target holds {low} to {high}, but {classes} classes are numbered 0 to {classes - 1}, and -1 ends a "
                "list",
                "Check how labels are numbered.",
            )
        elif classes > 2 and low >= 0 and high <= 1:
            self.warning(
                "one_hot_labels",
                f"target holds only 0 and 1: {self.loss} takes lists of class indices that end in -1",
                "For a mask of zeros and ones use multilabel_soft_margin_loss.",
            )

    # Losses of single elements

    def _check_elements(self) -> None:
        logits, shape = self.logits, self.logits.shape
        if logits.size == 0:
            self.error("empty", f"logits of shape {shape} are empty: a mean is NaN", "Skip the batch.")
            return
        self._check_element_weight()
        target = self.target
        if target.shape != shape:
            same = _squeezed(target.shape) == _squeezed(shape)
            if not (same and self.expected.regions and self.mode == "binary"):
                self._check_wrong_element_shape(same)
            target = target.reshape(shape) if same else np.zeros(0)
        picked = _spread(logits.size, SAMPLE)
        values = _elements(logits, picked)
        self.looked_at = f"{len(picked):,} of {_number(logits.size, 'logit')}"
        targets = _elements(target, picked) if target.size else None
        if targets is not None:
            self.looked_at += " and their targets"
            if self.ignore_index is not None:
                counted = targets != self.ignore_index
                if not counted.any():
                    self.error(
                        "all_ignored",
                        f"all targets looked at are {self.ignore_index}, which is ignored: a mean over nothing is NaN",
                        "Check where the labels come from.",
                    )
                    return
                picked, values, targets = picked[counted], values[counted], targets[counted]
            self._check_binary_targets(targets)
        self._check_values(values[:, None], lambda row, _: _index_text("logits", np.unravel_index(picked[row], shape)))
        self._check_element_values(values[np.isfinite(values)])

    def _check_wrong_element_shape(self, is_same_but_ones: bool) -> None:
        target, shape = self.target, self.logits.shape
        message = f"target has shape {target.shape}, but {self.loss} needs one entry a logit: {shape}"
        if is_same_but_ones:
            self.error(
                "extra_axis", f"{message}; they differ in axes of length 1", f"Reshape: target.reshape({shape})."
            )
            return
        axes = [axis for axis in range(len(shape)) if validate.row_shape(self.logits, axis) == target.shape]
        if axes and target.dtype.kind in "iu":
            axis = self.axis % len(shape)
            classes = shape[axis if axis in axes else axes[-1]]
            self.error(
                "indices_for_binary",
                f"{message}; it has the shape of class indices",
                f"For one class an example use cross_entropy; else give one-hot rows: np.eye({classes})[target].",
            )
            return
        self.error("target_shape", message, "Check how batches are put together.")

    def _check_element_weight(self) -> None:
        if self.weight is None or self.expected.regions:
            return
        try:
            validate._broadcastable("weight", self.weight, self.logits.shape)
        except (TypeError, ValueError) as error:
            self.error("weight_shape", str(error), "Give one factor an element, or a shape that broadcasts.")
        else:
            self._check_weight_values()

    def _check_binary_targets(self, targets: NDArray) -> None:
        if self._has_nan_target(targets):
            return
        low, high = float(targets.min()), float(targets.max())
        are_signs = bool((abs(targets) == 1).all())
        if self.expected.target == "signs":
            if self.target.dtype.kind != "b" and not are_signs:
                is_zero_one = _is_zero_one(targets)
                self.add(
                    "error" if is_zero_one else "warning",
                    "zeros_for_signs" if is_zero_one else "target_not_signs",
                    f"target holds {low:g} to {high:g}, but {self.loss} takes -1 and 1",
                    "Convert: 2 * target - 1, or target.astype(bool)." if is_zero_one else "Check the labels.",
                )
            positive = float((targets > 0).mean())
        elif low < 0 or high > 1:
            self._add_outside_unit_interval(targets, low, high, are_signs)
            return
        else:
            positive = float((targets >= 0.5).mean())
        if low == high:
            self._add_single_class(f"every target is {low:g}", targets.size)
        elif targets.size >= 40 and 0 < min(positive, 1 - positive) < 1 / 11:
            rare = "positive" if positive < 0.5 else "negative"
            suggestion = "Weigh the rare ones more, or use a focal or an overlap loss."
            if self.loss == "binary_cross_entropy_with_logits":
                suggestion = f"pos_weight={(1 - positive) / positive:.3g} balances them; count over all the data."
            self.note("class_imbalance", f"{min(positive, 1 - positive):.2%} of the targets are {rare}", suggestion)

    def _add_outside_unit_interval(self, targets: NDArray, low: float, high: float, are_signs: bool) -> None:
        outside = targets[(targets < 0) | (targets > 1)]
        code, suggestion = "target_outside_0_1", "Scale the targets to [0, 1]."
        takes_ignore_index = self.loss == "binary_cross_entropy_with_logits" or self.expected.regions
        if are_signs:
            code, suggestion = "signs_for_binary", "Convert: (target + 1) / 2, or target > 0."
        elif high == 255 and low >= 0 and set(np.unique(targets)) == {0.0, 255.0}:
            suggestion = "An image mask? Divide: target / 255, or target > 0."
        elif takes_ignore_index and outside.size < targets.size and (outside == outside[0]).all():
            code = "unnamed_ignore_index"
            suggestion = f"If {outside[0]:g} marks targets that do not count: ignore_index={outside[0]:g}."
        elif self.target.dtype.kind in "iu" and low >= 0:
            suggestion = "Class indices? Give one-hot rows, or use cross_entropy."
        self.error(code, f"target holds {low:g} to {high:g}, but {self.loss} takes 0 to 1", suggestion)

    def _check_element_values(self, values: NDArray) -> None:
        if not values.size:
            return
        low, high = float(values.min()), float(values.max())
        if self.expected.input == "probabilities":
            if low < 0 or high > 1:
                self._add_not_probabilities(low, high)
            return
        if values.size >= 4 and low == high:
            self._add_constant(low, high)
        elif low >= 0 and high <= 1 and values.size >= 16 and high - low >= 0.25:
            self.warning(
                "sigmoid_applied",
                f"all values lie in [0, 1], {low:.3g} to {high:.3g}: sigmoid seems to be applied already",
                "Give the logits themselves: " + self._what_is_applied("sigmoid"),
            )
        saturated = (abs(values) > _SATURATED) & (values > _MASK)
        self._check_saturation(saturated, "elements", "the logit is beyond 88")

    # Both

    def _has_nan_target(self, targets: NDArray) -> bool:
        is_nan = np.isnan(targets)
        if is_nan.any():
            self.error(
                "nan_target",
                f"{int(is_nan.sum()):,} of {targets.size:,} values of the target are NaN: so is the loss",
                "Check where the labels come from.",
            )
        return bool(is_nan.any())

    def _check_values(self, values: NDArray, position: Any) -> None:
        """NaN and +inf, which make the loss NaN."""
        for code, name, is_bad, suggestion in (
            ("nan", "NaN", np.isnan(values), "Look for 0/0, log of 0, or a learning rate that is too high."),
            ("inf", "+inf", values == np.inf, "Look for an overflow: float16 ends at 65504."),
        ):
            count = int(np.count_nonzero(is_bad))
            if count:
                first = np.argwhere(is_bad)[:3]
                places = ", ".join(position(int(row), int(c)) for row, c in first)
                self.error(
                    code,
                    f"{count:,} of {_number(values.size, 'value')} looked at {'is' if count == 1 else 'are'} {name}, "
                    f"{'at' if count == 1 else 'first at'} {places}",
                    suggestion,
                )

    def _position(self, row_shape: tuple[int, ...], row: int, c: int) -> str:
        index = np.unravel_index(row, row_shape) if row_shape else ()
        return _index_text("logits", (*index[: self.axis], c, *index[self.axis :]))


def _tolerance(dtype: np.dtype[Any]) -> float:
    """How far a sum of probabilities may be from 1: rounding each of them moves it by half an eps."""
    return {"float16": 2.0**-9, "bfloat16": 2.0**-6}.get(dtype.name, 1e-4)


def _rows(array: NDArray, axis: int, picked: NDArray) -> NDArray:
    """Rows along axis, by their number in C order over the other axes, in float64."""
    moved = np.moveaxis(array, axis, -1)
    if moved.ndim == 1:
        return moved[None].astype(np.float64)
    rows: NDArray = moved[np.unravel_index(picked, moved.shape[:-1])].astype(np.float64)
    return rows


def _elements(array: NDArray, picked: NDArray) -> NDArray:
    """Elements by their number in C order, in float64."""
    elements: NDArray = (array[np.unravel_index(picked, array.shape)] if array.ndim else array[None]).astype(np.float64)
    return elements


def _spread(total: int, count: int) -> NDArray:
    """At most count of the numbers below total, spread evenly."""
    return np.arange(total) if total <= count else np.linspace(0, total - 1, count).astype(np.int64)


def _squeezed(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(n for n in shape if n != 1)


def _is_zero_one(values: NDArray) -> bool:
    return bool(((values == 0) | (values == 1)).all())


def _number(count: int, singular: str, plural: str | None = None) -> str:
    return f"{count:,} {singular if count == 1 else plural or singular + 's'}"


def _some(classes: NDArray) -> str:
    text = ", ".join(str(each) for each in classes[:10])
    return f"{'class' if len(classes) == 1 else 'classes'} {text}" + (
        f" and {len(classes) - 10} more" if len(classes) > 10 else ""
    )


def _index_text(name: str, index: Sequence[Any]) -> str:
    return f"{name}[{', '.join(str(int(i)) for i in index)}]" if len(index) else name
