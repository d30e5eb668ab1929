"""Random calls in float64 give what torch's functions of the same names give."""

import warnings

import numpy as np
import pytest

import fastloss as fl


def torch_result(function, logits, target, grad_output, torch, **keywords):
    logits = torch.tensor(logits, requires_grad=True)
    keywords = {
        name: torch.tensor(value) if isinstance(value, np.ndarray) else value for name, value in keywords.items()
    }
    loss = function(logits, torch.tensor(target), **keywords)
    loss.backward(torch.tensor(grad_output, dtype=torch.float64))
    return loss.detach().numpy(), logits.grad.numpy()


def assert_same(result, expected, note):
    for ours, theirs in zip(result, expected, strict=True):
        scale = max(1.0, np.abs(theirs).max(initial=0))
        assert np.shape(ours) == theirs.shape
        assert np.abs(ours - theirs).max(initial=0) <= 1e-12 * scale, note


@pytest.fixture
def torch(peer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peer("torch")


@pytest.mark.parametrize("seed", range(60))
def test_cross_entropy(engine, torch, seed):
    rng = np.random.default_rng(seed)
    classes = int(rng.integers(1, 12))
    shape = [(classes,), (5, classes), (4, classes, 3), (2, classes, 3, 2)][rng.integers(4)]
    rows = () if len(shape) == 1 else shape[:1] + shape[2:]
    logits = rng.normal(0, 3, shape)
    keywords = {"reduction": ["mean", "sum", "none"][rng.integers(3)]}
    if rng.random() < 0.5:
        keywords["label_smoothing"] = float(rng.random())
    if rng.random() < 0.5:
        keywords["weight"] = rng.uniform(0.1, 2, classes)
    if rng.random() < 0.4:
        axis = 0 if len(shape) == 1 else 1
        target = np.moveaxis(rng.dirichlet(np.ones(classes), rows), -1, axis).copy()
    else:
        target = rng.integers(0, classes, rows)
        if rng.random() < 0.7 and rows:
            ignored = int(rng.choice([-100, -1, 0]))
            keywords["ignore_index"] = ignored
            target = np.where(rng.random(rows) < 0.3, ignored, target)
            target.flat[0] = classes - 1
            if ignored == 0 and classes == 1:
                del keywords["ignore_index"]
                target = np.zeros(rows, int)
    grad_output = rng.normal(0, 1, rows) if keywords["reduction"] == "none" else float(rng.normal())
    expected = torch_result(torch.nn.functional.cross_entropy, logits, target, grad_output, torch, **keywords)
    result = fl.cross_entropy(logits, target, return_grad=True, grad_output=grad_output, engine=engine, **keywords)
    assert_same(result, expected, (shape, sorted(keywords)))


@pytest.mark.parametrize("seed", range(40))
def test_binary(engine, torch, seed):
    rng = np.random.default_rng(seed)
    shape = [(1,), (7,), (4, 5), (2, 3, 4)][rng.integers(4)]
    logits, target = rng.normal(0, 3, shape), rng.random(shape)
    if rng.random() < 0.5:
        target = target.round()
    keywords = {"reduction": ["mean", "sum", "none"][rng.integers(3)]}
    for name in ("weight", "pos_weight"):
        if rng.random() < 0.5:
            keywords[name] = rng.uniform(0.1, 2, shape[-1:] if rng.random() < 0.5 else shape)
    grad_output = rng.normal(0, 1, shape) if keywords["reduction"] == "none" else float(rng.normal())
    function = torch.nn.functional.binary_cross_entropy_with_logits
    expected = torch_result(function, logits, target, grad_output, torch, **keywords)
    result = fl.binary_cross_entropy_with_logits(
        logits, target, return_grad=True, grad_output=grad_output, engine=engine, **keywords
    )
    assert_same(result, expected, (shape, sorted(keywords)))


def test_primitives(engine, torch):
    x = np.random.default_rng(0).normal(0, 5, (6, 5, 4))
    tensor = torch.tensor(x)
    for axis in (0, 1, 2, -1):
        assert fl.softmax(x, axis, engine=engine) == pytest.approx(torch.softmax(tensor, axis).numpy(), abs=4e-15)
        assert fl.log_softmax(x, axis, engine=engine) == pytest.approx(
            torch.log_softmax(tensor, axis).numpy(), rel=1e-12, abs=1e-13
        )
        assert fl.logsumexp(x, axis, engine=engine) == pytest.approx(torch.logsumexp(tensor, axis).numpy(), rel=1e-12)
    functions = torch.nn.functional
    assert fl.sigmoid(x, engine=engine) == pytest.approx(torch.sigmoid(tensor).numpy(), rel=1e-13)
    assert fl.log_sigmoid(x, engine=engine) == pytest.approx(functions.logsigmoid(tensor).numpy(), rel=1e-12)
    # torch.nn.functional.softplus is the identity from its threshold of 20 on.
    assert fl.softplus(x, engine=engine) == pytest.approx(functions.softplus(tensor, threshold=60).numpy(), rel=1e-12)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_everything_ignored(engine, torch, reduction):
    logits, target = np.ones((3, 4)), np.full(3, -100)
    theirs = torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(target), reduction=reduction)
    ours = fl.cross_entropy(logits, target, reduction=reduction, engine=engine)
    assert np.array_equal(ours, theirs.numpy(), equal_nan=True)
