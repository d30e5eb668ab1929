"""torch's own test material: every sample of its database of operators, and every input of its modules."""

import warnings

import pytest

LOSSES = [
    "cross_entropy", "nll_loss", "binary_cross_entropy", "binary_cross_entropy_with_logits", "kl_div",
    "soft_margin_loss", "multilabel_soft_margin_loss", "multi_margin_loss", "multilabel_margin_loss",
]  # fmt: skip
MODULES = [
    "CrossEntropyLoss", "NLLLoss", "BCELoss", "BCEWithLogitsLoss", "KLDivLoss", "SoftMarginLoss",
    "MultiLabelSoftMarginLoss", "MultiMarginLoss", "MultiLabelMarginLoss",
]  # fmt: skip
DTYPES = ["float32", "float64", "bfloat16", "float16"]
every_loss = pytest.mark.parametrize("name", LOSSES)
every_module = pytest.mark.parametrize("name", MODULES)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)

# Some of their samples have shapes that only torch takes: targets that broadcast, no dimensions, (1,) for one row.
ODD_SHAPES = {"kl_div", "multi_margin_loss", "multilabel_margin_loss"}


@pytest.fixture
def torch(peer):
    peer("expecttest")  # which torch's material needs
    return peer("torch")


@pytest.fixture
def ours(torch, peer):
    module = peer("fastloss.torch")
    module.uninstall()
    peer("fastloss.torch.counting").reset()
    return module


@pytest.fixture
def operators(torch, peer):
    database = peer("torch.testing._internal.common_methods_invocations").op_db
    return {op.name.rpartition(".")[2]: op for op in database if op.name.startswith("nn.functional.")}


@pytest.fixture
def modules(torch, peer):
    database = peer("torch.testing._internal.common_modules").module_db
    return {info.module_cls.__name__: info for info in database if info.module_cls.__module__.startswith("torch.nn.m")}


def quietly(function, *args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's advice on kl_div and on deprecated arguments
        return function(*args, **options)


def results(torch, function, input, args, options, dtype):
    """The loss, and its gradient for an upstream gradient that is not 1, of the input in this dtype."""

    def cast(value):
        is_real = isinstance(value, torch.Tensor) and value.is_floating_point()
        return value.detach().to(dtype) if is_real else value

    x = cast(input).clone().requires_grad_()
    loss = quietly(function, x, *map(cast, args), **{name: cast(value) for name, value in options.items()})
    loss.backward(torch.linspace(0.5, 1.5, max(loss.numel(), 1), dtype=loss.dtype)[: loss.numel()].reshape(loss.shape))
    return loss.detach(), x.grad


def assert_same(torch, ours, theirs, exact, dtype):
    """Close to torch's result; of a half type, to what torch computes in float32 from the same numbers."""
    for mine, other, reference in zip(ours, theirs, exact, strict=True):
        assert mine.dtype == other.dtype and mine.shape == other.shape
        if dtype in (torch.float32, torch.float64):
            limits = {"rtol": 1.3e-6, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-7, "atol": 1e-7}
            torch.testing.assert_close(mine, other, **limits, equal_nan=True)
        else:
            digits = torch.finfo(dtype).eps
            torch.testing.assert_close(mine.float(), reference, rtol=2 * digits, atol=digits * 1e-2, equal_nan=True)


@every_dtype
@every_loss
def test_operator_samples(torch, ours, operators, name, dtype):
    dtype = getattr(torch, dtype)
    operator, function = operators[name], getattr(ours, name)
    if dtype not in operator.dtypes:
        pytest.skip(f"torch has no {name} in {dtype}")
    samples = list(operator.sample_inputs("cpu", dtype, requires_grad=True))
    assert samples
    for sample in samples:
        given = sample.input, sample.args, sample.kwargs
        exact = torch.float32 if dtype.itemsize == 2 else dtype
        assert_same(
            torch,
            results(torch, function, *given, dtype),
            results(torch, operator.op, *given, dtype),
            results(torch, operator.op, *given, exact),
            dtype,
        )
    calls = ours.report().calls
    assert calls[name, "fastloss"] > 0
    others = {way for _, way in calls} - {"fastloss"}
    assert others <= ({"arguments"} if name in ODD_SHAPES else set()), calls


@every_dtype
@every_module
def test_module_inputs(torch, ours, modules, name, dtype):
    dtype = getattr(torch, dtype)
    info, ours_class = modules[name], getattr(ours, name)
    if dtype not in info.dtypes:
        pytest.skip(f"torch has no {name} in {dtype}")
    inputs = quietly(
        info.module_inputs_func, info, device="cpu", dtype=dtype, requires_grad=True, training=True
    )  # fmt: skip
    assert inputs
    for each in inputs:
        made, given = each.constructor_input, each.forward_input
        exact = torch.float32 if dtype.itemsize == 2 else dtype
        module, theirs = (
            quietly(cls, *made.args, **made.kwargs).to(dtype) for cls in (ours_class, info.module_cls)
        )  # fmt: skip
        assert isinstance(module, info.module_cls) and module.state_dict().keys() == theirs.state_dict().keys()
        call = given.args[0], given.args[1:], given.kwargs
        mine, other = results(torch, module, *call, dtype), results(torch, theirs, *call, dtype)
        assert_same(torch, mine, other, results(torch, theirs.to(exact), *call, exact), dtype)
    calls = ours.report().calls
    assert {way for _, way in calls} <= {"fastloss", *({"arguments"} if name == "KLDivLoss" else ())}, calls
    assert max(calls, key=calls.get)[1] == "fastloss"


@every_loss
def test_derivatives(torch, ours, operators, peer, name):
    """gradcheck and gradgradcheck in float64, by fastloss's gradient and that of torch's operations."""
    function, reset = getattr(ours, name), peer("fastloss.torch.counting").reset
    for sample in operators[name].sample_inputs("cpu", torch.float64, requires_grad=True):
        others = [each.detach() if isinstance(each, torch.Tensor) else each for each in sample.args]
        options = {k: v.detach() if isinstance(v, torch.Tensor) else v for k, v in sample.kwargs.items()}

        def call(x, others=others, options=options):
            return quietly(function, x, *others, **options)

        x = sample.input.detach().clone().requires_grad_()
        call(x)
        assert torch.autograd.gradcheck(call, x, check_batched_grad=True)
        if operators[name].supports_gradgrad or (name, "arguments") not in ours.report().calls:
            assert torch.autograd.gradgradcheck(call, x, check_batched_grad=True)
        reset()


@every_loss
def test_operator_errors(torch, ours, operators, name):
    operator = operators[name]
    if operator.error_inputs_func is None:
        pytest.skip(f"torch lists no errors of {name}")
    errors = list(operator.error_inputs("cpu"))
    assert errors
    for error in errors:
        given = error.sample_input
        with pytest.raises(error.error_type, match=error.error_regex):
            getattr(ours, name)(given.input, *given.args, **given.kwargs)


@every_module
def test_module_errors(torch, ours, modules, name):
    info = modules[name]
    if info.module_error_inputs_func is None:
        pytest.skip(f"torch lists no errors of {name}")
    for error in info.module_error_inputs_func(
        info, device="cpu", dtype=torch.float32, requires_grad=False, training=True
    ):
        made, given = error.module_error_input.constructor_input, error.module_error_input.forward_input
        with pytest.raises(error.error_type, match=error.error_regex):
            getattr(ours, name)(*made.args, **made.kwargs)(*given.args, **given.kwargs)
