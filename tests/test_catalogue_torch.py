"""The losses that torch has, or that a few of its lines say: the same values and gradients."""

import warnings

import numpy as np
import pytest
from checks import assert_grad, assert_loss

import fastloss as fl

every_dtype = pytest.mark.parametrize("dtype", [np.dtype(np.float64), np.dtype(np.float32)], ids=str)
every_reduction = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
SHAPES = [(), (1,), (7,), (4, 5), (2, 3, 4), (2, 3, 2, 2), (2, 1, 3, 2, 2)]
CLASS_SHAPES = [(4,), (1, 1), (6, 4), (2, 4, 3), (2, 4, 3, 2), (2, 4, 1, 3, 2)]


@pytest.fixture
def torch(peer):
    return peer("torch")


def compare(engine, torch, ours, theirs, dtype, given, target, **options):
    """Ours of given in dtype, and torch's of the same numbers in float64, with a random upstream gradient."""
    given = np.asarray(given).astype(dtype)
    options = {name: as_dtype(value, dtype) for name, value in options.items()}
    tensor = torch.tensor(given.astype(np.float64), requires_grad=True)
    tensors = {name: as_tensor(value, torch) for name, value in options.items()}
    expected = theirs(tensor, as_tensor(target, torch), **tensors)
    upstream = as_dtype(np.random.default_rng(1).normal(0, 1, tuple(expected.shape)), dtype)
    expected.backward(as_tensor(upstream, torch))
    note = f"{given.shape}, {options}"
    loss, grad = ours(given, target, return_grad=True, grad_output=upstream, engine=engine, **options)
    assert grad.dtype == dtype
    assert_loss(loss, expected.detach().numpy(), dtype, note)
    assert_grad(grad, tensor.grad.numpy(), note)
    assert np.array_equal(ours(given, target, engine=engine, **options), loss), note


def as_dtype(value, dtype):
    is_real = isinstance(value, np.ndarray) and value.dtype.kind == "f"
    return value.astype(dtype) if is_real else value


def as_tensor(value, torch):
    if not isinstance(value, np.ndarray):
        return value
    return torch.tensor(value.astype(np.float64 if value.dtype.kind == "f" else np.int64))


@every_dtype
@every_reduction
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_binary_cross_entropy(engine, torch, dtype, reduction, shape):
    rng = np.random.default_rng(0)
    theirs = torch.nn.functional.binary_cross_entropy
    probs = rng.random(shape)
    for target in (rng.random(shape).astype(np.float32), rng.integers(0, 2, shape).astype(np.float32)):
        for weight_shape in (None, shape[-1:], shape):
            options = {} if weight_shape is None else {"weight": rng.uniform(0.1, 2, weight_shape)}
            compare(
                engine, torch, fl.binary_cross_entropy, theirs, dtype, probs, np.asarray(target), reduction=reduction,
                **options,
            )  # fmt: skip


@every_dtype
def test_binary_cross_entropy_at_its_bounds(engine, torch, dtype):
    probs = np.array([0, 0, 1, 1, 1e-30, 1e-10, 1 - 2**-23, 0.5], dtype)
    target = np.array([0, 1, 0, 1, 1, 0, 0.25, 0.5], dtype)
    tensor = torch.tensor(probs.astype(np.float64), requires_grad=True)
    expected = torch.nn.functional.binary_cross_entropy(tensor, as_tensor(target, torch), reduction="none")
    expected.sum().backward()
    losses, grad = fl.binary_cross_entropy(probs, target, reduction="none", return_grad=True, engine=engine)
    limit = 1e-8 if dtype == np.float64 else 1e-6  # torch's 1e-12 is one of float32
    assert losses == pytest.approx(expected.detach().numpy(), rel=1e-12 if dtype == np.float64 else 1e-6, abs=0)
    assert grad == pytest.approx(tensor.grad.numpy(), rel=limit, abs=0)


@every_dtype
@every_reduction
@pytest.mark.parametrize("shape", CLASS_SHAPES, ids=str)
def test_nll_loss(engine, torch, dtype, reduction, shape):
    rng = np.random.default_rng(0)
    classes = shape[0] if len(shape) == 1 else shape[1]
    rows = () if len(shape) == 1 else shape[:1] + shape[2:]
    log_probs = np.log(rng.uniform(0.01, 1, shape))
    for has_weight in (False, True):
        for ignore_index in (-100, -1, 0):
            target = rng.integers(0, classes, rows)
            if classes > 1 and rows:
                target.flat[::3] = ignore_index
                target.flat[1] = 1
            elif ignore_index == 0:
                continue
            options = {"weight": rng.uniform(0.1, 2, classes)} if has_weight else {}
            compare(
                engine, torch, fl.nll_loss, torch.nn.functional.nll_loss, dtype, log_probs, np.asarray(target),
                reduction=reduction, ignore_index=ignore_index, **options,
            )  # fmt: skip


@every_dtype
@pytest.mark.parametrize("reduction", ["mean", "batchmean", "sum", "none"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kl_div(engine, torch, dtype, reduction, shape):
    if not shape and reduction == "batchmean":
        pytest.skip("no first axis: a ValueError of ours")
    rng = np.random.default_rng(0)
    log_input = np.log(rng.uniform(0.01, 1, shape))
    target = np.asarray(rng.random(shape), np.float32)
    target[rng.random(shape) < 0.3] = 0
    theirs = torch.nn.functional.kl_div
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's advice on "mean"
        compare(engine, torch, fl.kl_div, theirs, dtype, log_input, target, reduction=reduction)
        logs = np.asarray(np.log(rng.uniform(0.01, 1, shape)), np.float32)
        logs[rng.random(shape) < 0.1] = -200  # a probability that float32 can't hold
        compare(engine, torch, fl.kl_div, theirs, dtype, log_input, logs, reduction=reduction, log_target=True)


@every_dtype
@every_reduction
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_element_losses(engine, torch, dtype, reduction, shape):
    def hinge(z, y, margin, reduction):
        return reduced((margin - y * z).clamp(min=0), reduction)

    def focal(z, y, alpha, gamma, reduction):  # torchvision.ops.sigmoid_focal_loss
        p, y = torch.sigmoid(z), y.double()
        entropy = torch.nn.functional.binary_cross_entropy_with_logits(z, y, reduction="none")
        p_t = p * y + (1 - p) * (1 - y)
        loss = entropy * (1 - p_t) ** gamma
        return reduced(loss if alpha is None else (alpha * y + (1 - alpha) * (1 - y)) * loss, reduction)

    rng = np.random.default_rng(0)
    z, signs = rng.normal(0, 3, shape), np.asarray(rng.choice([-1, 1], shape))
    labels = (np.asarray(rng.integers(0, 2, shape)), np.asarray(rng.random(shape), np.float32))
    soft_margin = torch.nn.functional.soft_margin_loss
    compare(engine, torch, fl.soft_margin_loss, soft_margin, dtype, z, signs, reduction=reduction)
    for margin in (1.0, 0.3, -0.5):
        compare(engine, torch, fl.hinge_loss, hinge, dtype, z, signs, margin=margin, reduction=reduction)
    for alpha, gamma in ((0.25, 2.0), (0.7, 1.0), (None, 0.0), (None, 2.0), (0.0, 0.5), (1.0, 3.7)):
        for y in labels:
            options = {"alpha": alpha, "gamma": gamma, "reduction": reduction}
            compare(engine, torch, fl.sigmoid_focal_loss, focal, dtype, z, y, **options)


def reduced(losses, reduction):
    return losses if reduction == "none" else getattr(losses, reduction)()


@every_dtype
@every_reduction
@pytest.mark.parametrize("shape", SHAPES[1:], ids=str)
def test_multilabel_soft_margin_loss(engine, torch, dtype, reduction, shape):
    rng = np.random.default_rng(0)
    theirs = torch.nn.functional.multilabel_soft_margin_loss
    z = rng.normal(0, 3, shape)
    for target in (rng.integers(0, 2, shape), rng.random(shape).astype(np.float32)):
        for weight_shape in (None, shape[-1:], shape):
            options = {} if weight_shape is None else {"weight": rng.uniform(0.1, 2, weight_shape)}
            compare(
                engine, torch, fl.multilabel_soft_margin_loss, theirs, dtype, z, target, reduction=reduction, **options
            )


@every_dtype
@every_reduction
@pytest.mark.parametrize("shape", [(1,), (5,), (1, 1), (6, 4), (9, 40)], ids=str)
def test_multi_margin_loss(engine, torch, dtype, reduction, shape):
    rng = np.random.default_rng(0)
    z, target = rng.normal(0, 1, shape), np.asarray(rng.integers(0, shape[-1], shape[:-1]))
    for p in (1, 2):
        for margin in (1.0, 0.2, 4.0, -0.5):
            for options in ({}, {"weight": rng.uniform(0.1, 2, shape[-1])}):
                compare(
                    engine, torch, fl.multi_margin_loss, torch.nn.functional.multi_margin_loss, dtype, z, target, p=p,
                    margin=margin, reduction=reduction, **options,
                )  # fmt: skip


@every_dtype
@every_reduction
@pytest.mark.parametrize("shape", [(1,), (5,), (1, 1), (6, 4), (9, 40)], ids=str)
def test_multilabel_margin_loss(engine, torch, dtype, reduction, shape):
    rng = np.random.default_rng(0)
    theirs = torch.nn.functional.multilabel_margin_loss
    for z in (rng.normal(0, 1, shape), rng.normal(0, 0.1, shape)):
        # Labels in any order, repeated, and what follows the first -1.
        for target in (rng.integers(-1, shape[-1], shape), rng.integers(0, shape[-1], shape)):
            compare(engine, torch, fl.multilabel_margin_loss, theirs, dtype, z, target, reduction=reduction)
    nothing = np.full(shape, -1)
    compare(engine, torch, fl.multilabel_margin_loss, theirs, dtype, z, nothing, reduction=reduction)


@every_dtype
@every_reduction
@pytest.mark.parametrize("shape", CLASS_SHAPES, ids=str)
def test_focal_cross_entropy(engine, torch, dtype, reduction, shape):
    """-(1 - p)^gamma log(p), by torch's autograd."""
    axis = 0 if len(shape) == 1 else 1
    classes = shape[axis]
    rows = shape[:axis] + shape[axis + 1 :]

    def theirs(z, target, gamma, label_smoothing, weight, sample_weight, ignore_index=-100, reduction="mean"):
        log_p = torch.log_softmax(z.movedim(axis, -1), -1)
        each = sample_weight
        if target.is_floating_point():
            q, by_class = target.movedim(axis, -1), torch.ones(rows)
        else:
            each = each * (target != ignore_index)
            known = torch.where(target == ignore_index, 0, target)
            q, by_class = torch.nn.functional.one_hot(known, classes).double(), weight[known]
        q = (1 - label_smoothing) * q + label_smoothing / classes
        losses = each * (weight * q * (1 - log_p.exp()) ** gamma * -log_p).sum(-1)
        return losses if reduction == "none" else losses.sum() / ((each * by_class).sum() if reduction == "mean" else 1)

    rng = np.random.default_rng(0)
    z = rng.normal(0, 3, shape)
    weight, sample_weight = rng.uniform(0.1, 2, classes), np.asarray(rng.uniform(0.1, 2, rows))
    indices = np.asarray(rng.integers(0, classes, rows))
    if len(rows) > 1:
        indices.flat[::4] = -1
    probabilities = np.moveaxis(rng.dirichlet(np.ones(classes), rows), -1, axis).astype(np.float32)
    for target, ignore in ((indices, {"ignore_index": -1}), (probabilities, {})):
        for gamma, smoothing, by_class, by_row in (
            (2.0, 0.0, np.ones(classes), np.ones(rows)),
            (0.0, 0.1, np.ones(classes), sample_weight),
            (0.5, 0.0, weight, np.ones(rows)),
            (1.0, 0.3, weight, sample_weight),
            (3.7, 0.1, weight, sample_weight),
        ):
            if classes == 1 and 0 < gamma < 1:
                continue  # autograd has no slope of 0^gamma there
            compare(
                engine, torch, fl.focal_cross_entropy, theirs, dtype, z, target, reduction=reduction, gamma=gamma,
                label_smoothing=smoothing, weight=by_class, sample_weight=np.asarray(by_row), **ignore,
            )  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        "binary_cross_entropy",
        "binary_cross_entropy_with_logits",
        "cross_entropy",
        "kl_div",
        "multi_margin_loss",
        "multilabel_margin_loss",
        "multilabel_soft_margin_loss",
        "nll_loss",
        "soft_margin_loss",
    ],
)
def test_samples_of_torch(engine, torch, peer, name):
    """The inputs that torch tests its own functions with."""
    peer("expecttest")
    (op,) = [
        op
        for op in peer("torch.testing._internal.common_methods_invocations").op_db
        if op.name == f"nn.functional.{name}"
    ]
    tried = 0
    for sample in op.sample_inputs("cpu", torch.float64):
        given, target = sample.input.detach().numpy(), sample.args[0].detach().numpy()
        if given.ndim == 0 and name.startswith("multi"):
            continue  # a lone score has no axis of classes for us
        if name == "multi_margin_loss" and given.ndim == 1:
            target = target.reshape(())  # torch takes one of shape (1,) as well
        options = {key: value.numpy() if torch.is_tensor(value) else value for key, value in sample.kwargs.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = getattr(torch.nn.functional, name)
            compare(engine, torch, getattr(fl, name), theirs, np.dtype(np.float64), given, target, **options)
        tried += 1
    assert tried >= 3
