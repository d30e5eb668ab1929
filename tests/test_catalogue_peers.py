"""The same losses in optax and in Keras, where those have them."""

import numpy as np
import pytest

import fastloss as fl


@pytest.fixture
def optax(peer):
    """optax.losses, in float64, and a function for a loss and its gradient."""
    jax, losses = peer("jax"), peer("optax.losses")

    def evaluate(function, given):
        loss, pull = jax.vjp(function, jax.numpy.asarray(given))
        return np.asarray(loss), np.asarray(pull(jax.numpy.ones_like(loss))[0])

    with jax.enable_x64(True):
        yield losses, evaluate


@pytest.fixture
def keras(peer, monkeypatch):
    """keras.losses with torch behind, and a function for a loss and its gradient. Its means are rounded to float32."""
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    torch, package = peer("torch"), peer("keras")
    if package.backend.backend() != "torch":
        pytest.skip("Keras was imported before, with another backend")

    def evaluate(function, target, given):
        tensor = torch.tensor(given, requires_grad=True)
        loss = function(torch.tensor(target), tensor)
        loss.sum().backward()
        return loss.detach().numpy(), tensor.grad.numpy()

    return package.losses, evaluate


def assert_same(ours, theirs, limit=1e-11):
    for a, b in zip(ours, theirs, strict=True):
        assert np.shape(a) == np.shape(b)
        scale = np.abs(b).max()
        assert scale > 0
        assert np.abs(a - b).max() <= limit * scale


def test_optax_elements(engine, optax):
    losses, evaluate = optax
    rng = np.random.default_rng(0)
    z, signs, soft = rng.normal(0, 3, (5, 4)), rng.choice([-1, 1], (5, 4)), rng.random((5, 4))
    labels = (signs + 1) // 2
    options = {"reduction": "none", "return_grad": True, "engine": engine}
    assert_same(fl.hinge_loss(z, signs, **options), evaluate(lambda z: losses.hinge_loss(z, signs), z))
    for alpha, gamma in ((None, 2.0), (0.25, 2.0), (0.7, 0.5), (0.4, 3.7)):
        for y in (labels, soft):
            keywords = {"alpha": alpha, "gamma": gamma}
            theirs = evaluate(lambda z, y=y, k=keywords: losses.sigmoid_focal_loss(z, y, **k), z)
            assert_same(fl.sigmoid_focal_loss(z, y, **keywords, **options), theirs)
    theirs = evaluate(lambda z: losses.sigmoid_binary_cross_entropy(z, soft), z)
    assert_same(fl.binary_cross_entropy_with_logits(z, soft, **options), theirs)


def test_optax_kl_divergence(engine, optax):
    losses, evaluate = optax
    rng = np.random.default_rng(1)
    logs, target = np.log(rng.dirichlet(np.ones(6), 4)), rng.dirichlet(np.ones(6), 4)
    options = {"reduction": "batchmean", "return_grad": True, "engine": engine}
    theirs = evaluate(lambda x: losses.kl_divergence(x, target).mean(), logs)
    assert_same(fl.kl_div(logs, target, **options), theirs)
    theirs = evaluate(lambda x: losses.kl_divergence_with_log_targets(x, np.log(target)).mean(), logs)
    assert_same(fl.kl_div(logs, np.log(target), log_target=True, **options), theirs)


def test_optax_dice(engine, optax):
    losses, evaluate = optax
    rng = np.random.default_rng(2)
    z, target = rng.normal(0, 2, (3, 5, 4, 6)), rng.integers(0, 6, (3, 5, 4))
    one_hot, weight = np.eye(6)[target], rng.uniform(0.5, 2, 6)
    options = {"axis": -1, "per_sample": True, "absent": "count", "return_grad": True, "engine": engine}
    for alpha, beta, smooth in ((0.5, 0.5, 1.0), (0.3, 0.9, 0.1)):
        keywords = {"alpha": alpha, "beta": beta, "smooth": smooth}
        theirs = evaluate(lambda z, k=keywords: losses.dice_loss(z, one_hot, **k).mean(), z)
        assert_same(fl.tversky_loss(z, target, **keywords, **options), theirs)
        theirs = evaluate(lambda z, k=keywords: losses.dice_loss(z, one_hot, reduction="none", **k), z)
        assert_same(fl.tversky_loss(z, target, reduction="none", **keywords, **options), theirs)
    theirs = evaluate(lambda z: losses.dice_loss(z, one_hot, class_weights=weight, ignore_background=True).mean(), z)
    weight[0] = 0
    scale = weight.sum() / 5  # optax divides by the number of classes
    ours = fl.dice_loss(z, target, weight=weight, smooth=1.0, **options)
    assert_same([value * scale for value in ours], theirs)


def test_keras_elements(engine, keras):
    losses, evaluate = keras
    rng = np.random.default_rng(3)
    z, labels = rng.normal(0, 1.5, (5, 4)), rng.integers(0, 2, (5, 4)).astype(float)
    options = {"return_grad": True, "engine": engine}
    # Keras takes labels of 0 and 1 for -1 and 1, as we do where they are boolean.
    assert_same(fl.hinge_loss(z, labels > 0, **options), evaluate(losses.Hinge(dtype="float64"), labels, z), 1e-6)
    for alpha, gamma in ((0.25, 2.0), (0.7, 0.5)):
        focal = losses.BinaryFocalCrossentropy(True, alpha, gamma, from_logits=True, dtype="float64")
        ours = fl.sigmoid_focal_loss(z, labels, alpha=alpha, gamma=gamma, **options)
        assert_same(ours, evaluate(focal, labels, z), 1e-6)  # its probabilities are clipped
    probs = rng.uniform(0.01, 0.99, (5, 4))
    bce = losses.BinaryCrossentropy(dtype="float64")
    assert_same(fl.binary_cross_entropy(probs, labels, **options), evaluate(bce, labels, probs), 1e-6)


def test_keras_distributions(engine, keras):
    losses, evaluate = keras
    rng = np.random.default_rng(4)
    probs, target = rng.dirichlet(np.ones(6), 4), rng.dirichlet(np.ones(6), 4)
    loss, grad = fl.kl_div(np.log(probs), target, reduction="batchmean", return_grad=True, engine=engine)
    theirs = evaluate(losses.KLDivergence(dtype="float64"), target, probs)
    assert_same((loss, grad / probs), theirs, 1e-6)

    z, labels = rng.normal(0, 1.5, (5, 4)), rng.integers(0, 4, 5)
    options = {"return_grad": True, "engine": engine}
    focal = losses.CategoricalFocalCrossentropy(0.3, 1.5, from_logits=True, dtype="float64")
    ours = fl.focal_cross_entropy(z, labels, gamma=1.5, weight=np.full(4, 0.3), reduction="sum", **options)
    assert_same([value / 5 for value in ours], evaluate(focal, np.eye(4)[labels], z), 1e-6)


def test_keras_overlap(engine, keras):
    losses, evaluate = keras
    rng = np.random.default_rng(5)
    probs, mask = rng.random((2, 3, 5, 4)), rng.integers(0, 2, (2, 3, 5, 4)).astype(float)
    options = {"mode": "binary", "from_logits": False, "return_grad": True, "engine": engine}
    theirs = evaluate(losses.Dice(dtype="float64"), mask, probs)
    assert_same(fl.dice_loss(probs, mask, **options), theirs, 1e-6)
    # Its alpha is the weight of false negatives, whatever its docstring says: it swaps prediction and target.
    theirs = evaluate(losses.Tversky(0.9, 0.3, dtype="float64"), mask, probs)
    assert_same(fl.tversky_loss(probs, mask, alpha=0.3, beta=0.9, **options), theirs, 1e-6)
