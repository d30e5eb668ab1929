"""fastloss.torch and autograd: upstream gradients, several backward passes, memory, modes, and what goes to torch."""

import copy
import gc
import io
import pickle
import subprocess
import sys
import warnings
import weakref
from functools import partial

import numpy as np
import pytest

import fastloss as fl

OWN = {
    "cross_entropy": (
        {"z_loss": 0.1, "softcap": 5.0, "axis": -1},
        {"sample_weight": (6, 3), "weight": (4,)},
        "indices",
    ),
    "nll_loss": ({"axis": 2, "normalizer": 7.0}, {"sample_weight": (6, 3), "weight": (4,)}, "indices"),
    "binary_cross_entropy_with_logits": ({"label_smoothing": 0.2, "ignore_index": 1}, {"pos_weight": (4,)}, "mask"),
    "focal_cross_entropy": ({"gamma": 1.5, "axis": -1, "label_smoothing": 0.1}, {"sample_weight": (6, 3)}, "indices"),
    "sigmoid_focal_loss": ({"alpha": 0.3, "gamma": 1.5}, {}, "mask"),
    "hinge_loss": ({"margin": 0.7}, {}, "signs"),
    "dice_loss": ({"axis": -1, "smooth": 0.3, "ignore_index": -100}, {"weight": (4,)}, "indices"),
    "jaccard_loss": ({"axis": -1, "per_sample": True, "log_loss": True}, {}, "all indices"),
    "tversky_loss": ({"mode": "multilabel", "axis": -1, "alpha": 0.7, "gamma": 1.3, "squared": True}, {}, "mask"),
    "lovasz_loss": ({"axis": -1, "ignore_index": -100}, {}, "indices"),
}
every_own = pytest.mark.parametrize("name", OWN)
every_reduction = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])


@pytest.fixture
def torch(peer):
    return peer("torch")


@pytest.fixture
def ft(torch, peer):
    module = peer("fastloss.torch")
    module.uninstall()
    peer("fastloss.torch.counting").reset()
    return module


@pytest.fixture
def formulas(torch, peer):
    return peer("fastloss.torch.formulas")


@pytest.fixture
def batch(torch):
    torch.manual_seed(0)
    return torch.randn(6, 5, requires_grad=True), torch.tensor([0, 4, -100, 2, 2, 1])


def example(torch, name, dtype):
    """Logits, target and options of one of fastloss's own losses or options."""
    options, tensors, kind = OWN[name]
    torch.manual_seed(1)
    logits = torch.randn(6, 3, 4, dtype=dtype)
    if name == "nll_loss":
        logits = logits.log_softmax(-1)
    if kind.endswith("indices"):
        target = torch.randint(0, 4, (6, 3))
        target[:2, 0] = -100 if kind == "indices" else 1
    else:
        target = torch.randint(0, 2, (6, 3, 4)).to(dtype)
        target = 2 * target - 1 if kind == "signs" else target
    return logits, target, options | {each: torch.rand(shape, dtype=dtype) + 0.5 for each, shape in tensors.items()}


def arrays(torch, options):
    return {name: value.numpy() if isinstance(value, torch.Tensor) else value for name, value in options.items()}


# ---- Losses and options that torch does not have --------------------------------------------------------------------


@every_own
@every_reduction
def test_own_losses_are_those_of_arrays(torch, ft, name, reduction):
    logits, target, options = example(torch, name, torch.float64)
    options["reduction"] = reduction
    loss = getattr(ft, name)(logits.requires_grad_(), target, **options)
    upstream = torch.rand(loss.shape, dtype=torch.float64) + 0.5
    loss.backward(upstream)
    expected, grad = getattr(fl, name)(
        logits.detach().numpy(),
        target.numpy(),
        return_grad=True,
        grad_output=upstream.numpy(),
        **arrays(torch, options),
    )
    assert np.array_equal(loss.detach().numpy(), expected)
    assert logits.grad.numpy() == pytest.approx(grad, rel=1e-14, abs=1e-17)
    assert ft.report().calls == {(name, "fastloss"): 1}


@every_own
@every_reduction
def test_formulas_are_the_same_losses(torch, ft, formulas, name, reduction):
    logits, target, options = example(torch, name, torch.float64)
    options["reduction"] = reduction
    results = []
    for function in (getattr(ft, name), getattr(formulas, name)):
        x = logits.clone().requires_grad_()
        loss = function(x, target, **options)
        loss.sum().backward()
        results.append((loss.detach(), x.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-13)


@every_own
@every_reduction
def test_own_losses_derivatives(torch, ft, name, reduction):
    logits, target, options = example(torch, name, torch.float64)
    function = partial(getattr(ft, name), target=target, reduction=reduction, **options)
    call = lambda x: function(x)  # noqa: E731, gradcheck gives the input by position
    assert torch.autograd.gradcheck(call, logits.requires_grad_(), check_batched_grad=True)
    assert torch.autograd.gradgradcheck(call, logits)
    assert ft.report().calls[name, "derivative of the gradient"] > 0


@pytest.mark.parametrize("empty", ["nan", "zero"])
def test_formula_of_the_mean_over_nothing(torch, ft, formulas, empty):
    logits, target = torch.randn(3, 4, dtype=torch.float64, requires_grad=True), torch.full((3,), -100)
    for function in (ft.cross_entropy, formulas.cross_entropy):
        loss = function(logits, target, empty=empty)
        assert loss.isnan() if empty == "nan" else loss == 0
        (grad,) = torch.autograd.grad(loss, logits)
        assert not grad.any()
    for function in (ft.cross_entropy, formulas.cross_entropy):
        with pytest.raises(ValueError, match="the mean is over nothing"):
            function(logits, target, empty="raise")


def test_combine(torch, ft):
    logits, target, _ = example(torch, "dice_loss", torch.float64)
    weight = torch.tensor([1.0, 2.0, 0.5, 1.0], dtype=torch.float64)
    parts = [(0.5, "cross_entropy", {"axis": -1}), (2.0, "dice_loss", {"axis": -1, "ignore_index": -100})]
    parts[1][2]["weight"] = weight
    loss = ft.combine([(k, getattr(ft, name), options) for k, name, options in parts])
    result = loss(logits.requires_grad_(), target)
    result.backward()
    of_arrays = fl.combine([(k, getattr(fl, name), arrays(torch, options)) for k, name, options in parts])
    expected, grad = of_arrays(logits.detach().numpy(), target.numpy(), return_grad=True)
    assert result.item() == expected and np.array_equal(logits.grad, grad)
    assert torch.autograd.gradgradcheck(lambda x: loss(x, target), logits)
    assert "0.5 cross_entropy + 2 dice_loss" in repr(loss)
    assert torch.equal(pickle.loads(pickle.dumps(loss))(logits, target), result)


def test_options_of_the_batch(torch, ft, batch):
    logits, target = batch
    count = torch.tensor(20.0)  # as transformers gives the number of tokens of all batches
    for normalizer in (count, 20.0):
        loss = ft.CrossEntropyLoss()(logits, target, normalizer=normalizer)
        torch.testing.assert_close(loss, ft.cross_entropy(logits, target, reduction="sum") / 20)
    with pytest.raises(TypeError, match="no option 'gama': expected one of gamma"):
        ft.focal_cross_entropy(logits, target, gama=2.0)
    with pytest.raises(TypeError, match="FocalCrossEntropyLoss has no option 'gama': expected one of gamma"):
        ft.FocalCrossEntropyLoss(gama=2.0)


# ---- Backward -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("upstream", [1.0, 0.25, -3.0, 0.0])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_any_upstream_gradient(torch, ft, batch, upstream, dtype):
    x = batch[0].detach().to(getattr(torch, dtype)).requires_grad_()
    exact = x.detach().double().requires_grad_()  # in float32, torch is off by more than the bound itself
    (ft.cross_entropy(x, batch[1]) * upstream).backward()
    (torch.nn.functional.cross_entropy(exact, batch[1]) * upstream).backward()
    digits = torch.finfo(x.dtype).eps
    torch.testing.assert_close(x.grad.double(), exact.grad, rtol=2 * digits, atol=digits * 1e-2)


def test_float16_gradients_keep_a_loss_scale(torch, ft):
    """A gradient of 1 / 100000 is subnormal in float16; times the scale it is not."""
    x = torch.zeros(100_000, 2, dtype=torch.float16, requires_grad=True)
    (ft.cross_entropy(x, torch.zeros(100_000, dtype=torch.int64)) * 2.0**15).backward()
    assert x.grad[0, 1].item() == pytest.approx(2.0**15 / 200_000, rel=1e-3)


@every_reduction
def test_several_backward_passes(torch, ft, batch, reduction):
    """Autograd may add to a gradient that it was given, in place: the next pass must not see that."""
    logits, target = batch
    loss = ft.cross_entropy(logits, target, reduction=reduction)
    upstream = torch.rand(loss.shape) + 0.5
    (expected,) = torch.autograd.grad(
        torch.nn.functional.cross_entropy(logits, target, reduction=reduction), logits, upstream
    )
    for k in (1, 2, 3):
        loss.backward(upstream, retain_graph=k < 3)
        torch.testing.assert_close(logits.grad, k * expected)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward(upstream)


def test_a_gradient_that_was_handed_out_stays(torch, ft, batch):
    logits, target = batch
    loss = ft.cross_entropy(logits * 1, target)
    (first,) = torch.autograd.grad(loss, logits, retain_graph=True)
    kept = first.clone()
    first_data = first.data_ptr()
    (second,) = torch.autograd.grad(loss, logits, torch.tensor(5.0), retain_graph=True)
    assert second.data_ptr() != first_data and torch.equal(first, kept)
    torch.testing.assert_close(second, 5 * kept)


def test_two_losses_of_the_same_logits(torch, ft, batch):
    """Both gradients are added up, the one of them in the memory of the other perhaps."""
    logits, target = batch
    functions = torch.nn.functional
    grads = []
    for namespace in (ft, functions):
        logits.grad = None
        z = logits * 2
        total = namespace.cross_entropy(z, target) + namespace.cross_entropy(z, target, reduction="sum")
        total.backward(retain_graph=True)
        total.backward()
        grads.append(logits.grad)
    torch.testing.assert_close(*grads)


def test_hessian(torch, ft, batch):
    logits, target = batch
    ours, theirs = (
        torch.autograd.functional.hessian(lambda x, f=f: f(x, target), logits.detach())
        for f in (ft.cross_entropy, torch.nn.functional.cross_entropy)
    )
    torch.testing.assert_close(ours, theirs)
    penalty = torch.autograd.grad(ft.cross_entropy(logits, target), logits, create_graph=True)[0].square().sum()
    penalty.backward()
    assert logits.grad.abs().max() > 0


def test_logits_that_change_after_the_loss(torch, ft, batch):
    """As with torch: the gradient is there already, and where it is not, autograd notices."""
    logits, target = batch
    z = logits * 1
    expected = torch.autograd.grad(ft.cross_entropy(z, target), logits)[0]
    z = logits * 1
    loss = ft.cross_entropy(z, target)
    z.detach().zero_()
    assert torch.equal(torch.autograd.grad(loss, logits, retain_graph=True)[0], expected)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# ---- In place -------------------------------------------------------------------------------------------------------


@every_reduction
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_inplace(torch, ft, batch, reduction, dtype):
    target = batch[1]
    leaf = batch[0].detach().to(getattr(torch, dtype)).requires_grad_()
    upstream = torch.rand(() if reduction != "none" else target.shape).to(leaf.dtype) + 0.5
    results = []
    for inplace in (False, True):
        z = (leaf * 2).t().contiguous().t()  # no matter how they lie
        seen = []
        z.register_hook(lambda grad, seen=seen: seen.append(grad.data_ptr()))
        loss = ft.cross_entropy(z, target, reduction=reduction, inplace=inplace)
        (grad,) = torch.autograd.grad(loss, leaf, upstream)
        assert (seen == [z.data_ptr()]) == inplace
        results.append((loss.detach(), grad))
    assert torch.equal(results[0][0], results[1][0])
    digits = torch.finfo(leaf.dtype).eps
    torch.testing.assert_close(results[0][1], results[1][1], rtol=2 * digits, atol=digits * 1e-2)


def test_inplace_is_noticed_by_others(torch, ft, batch):
    logits, target = batch
    # A later use computes from the logits, and the backward passes are in an order that keeps them.
    z = logits * 2
    (ft.cross_entropy(z, target, inplace=True) + z.square().sum()).backward()
    expected = torch.autograd.grad(
        torch.nn.functional.cross_entropy(logits * 2, target) + (logits * 2).square().sum(), logits
    )
    torch.testing.assert_close(logits.grad, expected[0])
    # One that comes too late for them.
    for make in (
        lambda z: z.square().sum(),
        lambda z: ft.cross_entropy(z, target, reduction="none").sum(),
        lambda z: ft.cross_entropy(z, target, inplace=True),
    ):
        z = logits * 2
        late = make(z)
        ft.cross_entropy(z, target, inplace=True).backward()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            late.backward()
    # What made the logits, where it has kept them.
    z = logits.tanh()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        ft.cross_entropy(z, target, inplace=True).backward()
    # A second pass.
    loss = ft.cross_entropy(logits * 2, target, inplace=True)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_inplace_of_what_is_not_its_own(torch, ft, batch):
    logits, target = batch
    with pytest.raises(RuntimeError, match="a leaf requiring grad.*expected the result of an operation"):
        ft.cross_entropy(logits, target, inplace=True)
    with pytest.raises(
        RuntimeError, match="a leaf requiring grad, or a view of one.*expected the result of an operation"
    ):
        ft.cross_entropy(logits.view(logits.shape), target, inplace=True)
    with pytest.raises(RuntimeError, match="of which several share memory: expected an element of its own"):
        ft.cross_entropy((logits[:1] * 2).expand(6, 5), target, inplace=True)
    with torch.no_grad():  # nothing is written
        ft.cross_entropy(logits, target, inplace=True)


# ---- Memory ---------------------------------------------------------------------------------------------------------


@pytest.mark.skipif("cython" not in fl.engines(), reason="only the compiled engine recycles memory")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_are_recycled_and_not_copied(torch, ft, dtype, monkeypatch):
    fl.set_buffer_limit(0)  # what other tests have left waiting would be taken in turn
    fl.set_buffer_limit(2**30)
    made = []

    def compute(*args, **options):
        result = fl.cross_entropy(*args, **options)
        made.append(result[1].__array_interface__["data"][0])
        return result

    monkeypatch.setitem(ft.functional._CROSS_ENTROPY.__dict__, "compute", compute)
    weight = torch.randn(8, 40_000, dtype=getattr(torch, dtype))
    x = torch.randn(64, 8, dtype=weight.dtype, requires_grad=True)
    target = torch.randint(0, 40_000, (64,))
    seen = []
    for upstream in (1.0, 1.0, 0.5, 1.0, 2.0, 1.0):
        z = x @ weight
        z.register_hook(lambda grad: seen.append(grad.data_ptr()))
        (ft.cross_entropy(z, target) * upstream).backward()
        del z
    assert seen == made and len(set(seen)) <= 2
    leaf = (x @ weight).detach().requires_grad_()
    ft.cross_entropy(leaf, target).backward()
    assert leaf.grad.data_ptr() == made[-1]


@pytest.mark.skipif("cython" not in fl.engines(), reason="only the compiled engine recycles memory")
def test_a_gradient_in_use_is_not_recycled(torch, ft):
    x = torch.randn(256, 1000, requires_grad=True)
    target = torch.randint(0, 1000, (256,))
    ft.cross_entropy(x, target).backward()
    grad, kept = x.grad, x.grad.clone()
    row = grad[3]
    x.grad = None
    del grad
    gc.collect()
    for _ in range(3):
        ft.cross_entropy(x * 2, target.flip(0)).backward()
        x.grad = None
    assert torch.equal(row, kept[3])


@pytest.mark.parametrize("way", ["DLPack", "NumPy"])
def test_strides_without_a_copy(torch, ft, monkeypatch, way):
    if way == "NumPy":  # as in an installation without the extension
        monkeypatch.setattr(ft.autograd, "_DTYPES", {})
    elif "cython" not in fl.engines():
        pytest.skip("needs the compiled extension")
    functional = ft.functional
    seen = []
    compute = functional._CROSS_ENTROPY.compute
    monkeypatch.setitem(
        functional._CROSS_ENTROPY.__dict__,
        "compute",
        lambda logits, *args, **options: seen.append(logits) or compute(logits, *args, **options),
    )
    base = torch.randn(8, 12, 7)
    for logits in (base, base.transpose(1, 2), base[::2, 1:], base.permute(2, 0, 1), base.bfloat16()[:, ::3]):
        logits = logits.detach().requires_grad_()
        target = torch.randint(0, logits.shape[1], (logits.shape[0], logits.shape[2]))
        loss = ft.cross_entropy(logits, target)
        loss.backward()
        assert seen[-1].__array_interface__["data"][0] == logits.data_ptr()
        assert tuple(each // logits.element_size() for each in seen[-1].strides) == logits.stride()
        x = logits.detach().double().requires_grad_()
        torch.nn.functional.cross_entropy(x, target).backward()
        torch.testing.assert_close(logits.grad.double(), x.grad, rtol=1e-2, atol=1e-6)


def test_memory_of_a_tensor(torch):
    if "cython" not in fl.engines():
        pytest.skip("needs the compiled extension")
    from fastloss.engines._cython import memory_of

    numbers = torch.arange(6.0).reshape(2, 3).t()
    array = memory_of(torch.utils.dlpack.to_dlpack(numbers), np.dtype(np.float32))
    assert array.ctypes.data == numbers.data_ptr() and array.flags.writeable
    del numbers
    gc.collect()
    torch.full((2, 3), 7.0)  # would take memory that was given back
    np.testing.assert_array_equal(array, [[0, 3], [1, 4], [2, 5]])
    with pytest.raises(TypeError, match="of 1 axes and 32 bits is given: expected one of the CPU, .* and 64 bits"):
        memory_of(torch.utils.dlpack.to_dlpack(torch.ones(2)), np.dtype(np.float64))
    with pytest.raises(ValueError, match="PyCapsule"):
        memory_of(array, np.dtype(np.float32))
    with pytest.raises(TypeError, match="a tensor without memory is given"):
        memory_of(torch.utils.dlpack.to_dlpack(torch._efficientzerotensor((2,))), np.dtype(np.float32))


def test_tensors_without_memory(torch, ft, batch):
    class Wrapper(torch.Tensor):
        """Has another tensor instead of memory."""

        @staticmethod
        def __new__(cls, inner):
            return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

        def __init__(self, inner):
            self.inner = inner

        @classmethod
        def __torch_dispatch__(cls, function, types, arguments=(), options=None):
            arguments = [each.inner if isinstance(each, cls) else each for each in arguments]
            return function(*arguments, **(options or {}))

    logits, target = batch
    loss = ft.cross_entropy(torch._efficientzerotensor((6, 5)), target)
    assert loss.item() == pytest.approx(np.log(5)) and ft.report().calls == {("cross_entropy", "arguments"): 1}
    upstream = torch.rand(6)
    grads = [
        torch.autograd.grad(each.cross_entropy(logits, target, reduction="none"), logits, Wrapper(upstream))[0]
        for each in (torch.nn.functional, ft)
    ]
    torch.testing.assert_close(*grads)


def test_a_backward_pass_lets_go_of_the_target(torch, ft, batch):
    logits, _ = batch
    target, weight = torch.rand(6, 5).softmax(1), torch.rand(5)
    loss = ft.cross_entropy(logits, target, weight)
    loss.backward()
    there = [weakref.ref(target), weakref.ref(weight)]
    del target, weight
    assert [each() for each in there] == [None, None] and loss.grad_fn is not None


# ---- Modes ----------------------------------------------------------------------------------------------------------


def test_no_gradient_where_none_is_needed(torch, ft, batch, monkeypatch):
    logits, target = batch
    asked = []
    compute = fl.cross_entropy
    monkeypatch.setitem(
        ft.functional._CROSS_ENTROPY.__dict__,
        "compute",
        lambda *args, return_grad=False, **options: (
            asked.append(return_grad) or compute(*args, return_grad=return_grad, **options)
        ),
    )
    expected = torch.nn.functional.cross_entropy(logits, target).detach()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            loss = ft.cross_entropy(logits, target)
            assert not loss.requires_grad
            torch.testing.assert_close(loss, expected)
    with torch.inference_mode():
        made_here = logits * 1
        torch.testing.assert_close(ft.cross_entropy(made_here, target), expected)
    ft.cross_entropy(logits.detach(), target)
    ft.cross_entropy(logits, target, reduction="none")
    assert asked == [False] * 5
    ft.cross_entropy(logits, target)
    assert asked.pop() is True


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_autocast(torch, ft, dtype):
    """Losses and gradients have the dtypes that torch gives them."""
    torch.manual_seed(0)
    weight = torch.randn(5, 5, requires_grad=True)
    x, indices, mask = torch.randn(6, 5), torch.randint(0, 5, (6,)), torch.randint(0, 2, (6, 5)).float()
    class_weight = torch.rand(5) + 0.5
    calls = {
        "cross_entropy": (indices, {"weight": class_weight}),
        "nll_loss": (indices, {}),
        "binary_cross_entropy_with_logits": (mask, {"pos_weight": class_weight}),
        "kl_div": (mask, {"reduction": "sum"}),
        "soft_margin_loss": (2 * mask - 1, {}),
        "multilabel_soft_margin_loss": (mask, {}),
        "multi_margin_loss": (indices, {"weight": class_weight}),
    }
    for name, (target, options) in calls.items():
        results = []
        for namespace in (ft, torch.nn.functional):
            weight.grad = None
            with torch.autocast("cpu", dtype=getattr(torch, dtype)):
                z = x @ weight
                assert z.dtype == getattr(torch, dtype)
                loss = getattr(namespace, name)(z, target, **options)
            (grad,) = torch.autograd.grad(loss, z)
            results.append((loss.detach(), grad))
        for ours, theirs in zip(*results, strict=True):
            assert ours.dtype == theirs.dtype, name
            torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.02)
    taken = {name for name, way in ft.report().calls if way == "fastloss"}
    assert taken >= {"cross_entropy", "nll_loss", "binary_cross_entropy_with_logits", "kl_div", "multi_margin_loss"}


def test_as_many_threads_as_torch(torch, ft, batch, monkeypatch):
    compute, asked = fl.cross_entropy, []
    monkeypatch.setitem(
        ft.functional._CROSS_ENTROPY.__dict__,
        "compute",
        lambda *args, num_threads, **options: asked.append(num_threads) or compute(*args, **options),
    )
    before = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            ft.cross_entropy(*batch)
    finally:
        torch.set_num_threads(before)
    assert asked == [1, 3]


@pytest.mark.skipif("cython" not in fl.engines(), reason="the compiled engine has the threads")
def test_one_openmp_runtime(torch, ft):
    """Two of them would start twice as many threads, which spin against each other."""
    try:
        with open("/proc/self/maps") as file:
            loaded = {line.split()[-1] for line in file if "libgomp" in line or "libomp" in line or "libiomp" in line}
    except OSError:
        pytest.skip("no /proc here to look at")
    from fastloss.engines import get

    if get("cython").threading() != "OpenMP":
        pytest.skip("built without OpenMP")
    assert len({path for path in loaded if "sklearn" not in path and "scikit" not in path}) == 1, loaded


# ---- What goes to torch ---------------------------------------------------------------------------------------------


def test_what_torch_computes_is_counted(torch, ft, batch):
    logits, target = batch
    target = target.clamp(min=0)
    probabilities = torch.rand(6, 5).softmax(1)

    class Subclass(torch.Tensor):
        pass

    def meta():
        return ft.cross_entropy(logits.to("meta"), target.to("meta"))

    def dual():
        import torch.autograd.forward_ad as forward

        with forward.dual_level(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's first use of this is of its deprecated torch.jit
            return ft.cross_entropy(forward.make_dual(logits, torch.ones_like(logits)), target)

    def dispatch():
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False):
            return ft.cross_entropy(logits, target)

    def traced():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit is deprecated
            return torch.jit.trace(lambda x: ft.cross_entropy(x, target), logits.detach())(logits)

    cases = {
        "device or layout": meta,
        "tensor subclass": lambda: ft.cross_entropy(logits.as_subclass(Subclass), target),
        "dtype": lambda: ft.cross_entropy(logits, probabilities.double()),
        "gradient of another argument": lambda: ft.cross_entropy(logits, probabilities.requires_grad_()),
        "forward-mode derivative": dual,
        "mode or tracing": dispatch,
        "torch.func": lambda: torch.func.grad(lambda x: ft.cross_entropy(x, target))(logits).sum(),
        "arguments": lambda: ft.kl_div(logits, target[:, None].float(), reduction="sum"),
    }
    for way, make in cases.items():
        ft.counting.reset()
        assert make().dim() == 0
        assert {each for _, each in ft.report().calls} == {way}
    ft.counting.reset()
    traced()
    assert ("cross_entropy", "mode or tracing") in ft.report().calls
    for make in (
        lambda: ft.binary_cross_entropy_with_logits(torch.eye(2).to_sparse(), torch.eye(2).to_sparse()),
        lambda: ft.cross_entropy(logits.to(torch.complex64), target),
        lambda: ft.cross_entropy(logits, target.float()),
        lambda: ft.cross_entropy(logits, target[:3]),
        lambda: ft.cross_entropy(logits, target, reduction="average"),
        lambda: ft.cross_entropy(logits.tolist(), target),
    ):
        messages = []
        for _ in range(2):
            with pytest.raises((RuntimeError, ValueError, TypeError, NotImplementedError)) as raised:
                make()
            messages.append(str(raised.value))
        assert messages[0] == messages[1] and "fastloss" not in messages[0]


def test_errors_of_fastloss(torch, ft, batch):
    logits, target = batch
    with pytest.raises(IndexError, match=r"target\[2\] is -100, but logits have 5 classes on axis 1"):
        ft.cross_entropy(logits, target, ignore_index=7)
    with pytest.raises(ValueError, match="axis is 4, but logits"):
        ft.cross_entropy(logits, target, axis=4)


def test_default_device_and_modes_that_change_nothing(torch, ft, batch):
    with torch.device("cpu"):
        ft.cross_entropy(*batch)
    assert ft.report().calls == {("cross_entropy", "fastloss"): 1}


def test_import_under_a_default_device(torch):
    code = "import torch; torch.set_default_device('meta'); import fastloss.torch"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_ml_dtypes_bfloat16_goes_to_torch(torch, ft, batch, monkeypatch):
    monkeypatch.setattr(ft.autograd, "FLOATS", ft.autograd.FLOATS - {torch.bfloat16})
    loss = ft.cross_entropy(batch[0].bfloat16(), batch[1])
    assert loss.dtype == torch.bfloat16 and ft.report().calls == {("cross_entropy", "dtype"): 1}


def test_negative_views(torch, ft, batch):
    logits, target = batch
    view = torch._neg_view(logits.detach())
    for options in ({}, {"z_loss": 0.1}):
        torch.testing.assert_close(
            ft.cross_entropy(view, target, **options), ft.cross_entropy(-logits, target, **options)
        )  # fmt: skip
    assert ft.report().calls["cross_entropy", "device or layout"] == 2


@every_own
def test_torch_func(torch, ft, name):
    logits, target, options = example(torch, name, torch.float64)
    loss = partial(getattr(ft, name), **options)
    expected = torch.autograd.grad(loss(logits.requires_grad_(), target), logits)[0]
    torch.testing.assert_close(torch.func.grad(lambda x: loss(x, target))(logits), expected)
    if name != "lovasz_loss":  # which sorts as many numbers as there are targets of a class
        both = torch.func.vmap(lambda x: loss(x, target))(torch.stack([logits, logits * 2]))
        torch.testing.assert_close(both, torch.stack([loss(logits, target), loss(logits * 2, target)]))


# ---- Modules --------------------------------------------------------------------------------------------------------


def test_modules_copy_save_and_load(torch, ft, batch):
    logits, target = batch
    weight = torch.rand(5) + 0.5
    loss = ft.CrossEntropyLoss(weight, label_smoothing=0.1, z_loss=1e-3)
    theirs = torch.nn.CrossEntropyLoss(torch.ones(5))
    theirs.load_state_dict(loss.state_dict())
    assert torch.equal(theirs.weight, weight)
    file = io.BytesIO()
    torch.save(loss, file)
    file.seek(0)
    for copied in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss)), torch.load(file, weights_only=False)):
        assert torch.equal(copied(logits, target), loss(logits, target))
        assert repr(copied) == repr(loss) == (
            "CrossEntropyLoss(weight=tensor of shape (5,), label_smoothing=0.1, z_loss=0.001)"
        )  # fmt: skip
    assert repr(ft.BCEWithLogitsLoss()) == "BCEWithLogitsLoss()"
    assert repr(ft.DiceLoss(smooth=1.0)) == "DiceLoss(smooth=1.0)"
    assert ft.DiceLoss(weight=torch.ones(3)).double().weight.dtype == torch.float64
    own = pickle.loads(pickle.dumps(ft.FocalCrossEntropyLoss(gamma=3.0)))
    assert own(logits, target) == ft.focal_cross_entropy(logits, target, gamma=3.0)


def test_deprecated_reductions(torch, ft, batch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for options in ({"size_average": False}, {"reduce": False}, {"size_average": True}):
            ours, theirs = ft.cross_entropy(*batch, **options), torch.nn.functional.cross_entropy(*batch, **options)
            torch.testing.assert_close(ours, theirs)
            torch.testing.assert_close(ft.CrossEntropyLoss(**options)(*batch), theirs)


@pytest.mark.parametrize("name", [*OWN, "kl_div", "multi_margin_loss"])
def test_signatures(torch, ft, name):
    """torch's arguments in torch's order, then fastloss's by name."""
    import inspect

    ours = inspect.signature(getattr(ft, name)).parameters
    theirs = getattr(torch.nn.functional, name, None)
    if theirs is not None:
        expected = inspect.signature(theirs).parameters
        assert list(ours)[: len(expected)] == list(expected)
        assert all(ours[each].default == expected[each].default for each in expected)
    of_arrays = set(inspect.signature(getattr(fl, name)).parameters) - set(ft.functional._OF_ARRAYS)
    first = {"logits", "log_probs", "log_input"}
    assert set(ours) >= (of_arrays - first) | {"input", "inplace"}
