"""fastloss.torch.install(): torch's own modules, transformers, torch.compile, several processes."""

import json
import os
import shutil
import subprocess
import sys
import warnings

import pytest


@pytest.fixture
def torch(peer):
    return peer("torch")


@pytest.fixture
def ft(torch, peer):
    module = peer("fastloss.torch")
    module.uninstall()
    peer("fastloss.torch.counting").reset()
    yield module
    module.uninstall()


def test_importing_fastloss_imports_no_torch():
    code = "import sys, fastloss; assert 'torch' not in sys.modules; assert 'fastloss.torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_torch_the_import_says_what_is_missing():
    code = "import sys; sys.modules['torch'] = None; import fastloss.torch"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    last = result.stderr.splitlines()[-1]
    assert last == "ModuleNotFoundError: fastloss.torch needs PyTorch, which is not installed: pip install torch"


def test_install_and_uninstall(torch, ft):
    functional = torch.nn.functional
    own = functional.cross_entropy
    assert ft.functional.OWN["cross_entropy"] is own
    ft.install()
    assert functional.cross_entropy is ft.cross_entropy
    ft.install()  # twice is once
    with ft.installed():
        assert functional.cross_entropy is ft.cross_entropy
    assert functional.cross_entropy is ft.cross_entropy  # as before the with statement
    ft.uninstall()
    assert functional.cross_entropy is own
    with pytest.raises(ZeroDivisionError), ft.installed():
        raise ZeroDivisionError
    assert functional.cross_entropy is own


@pytest.mark.parametrize(
    "name",
    [
        "CrossEntropyLoss", "NLLLoss", "BCELoss", "BCEWithLogitsLoss", "KLDivLoss", "SoftMarginLoss",
        "MultiLabelSoftMarginLoss", "MultiMarginLoss", "MultiLabelMarginLoss",
    ],
)  # fmt: skip
def test_modules_of_torch_use_what_is_installed(torch, ft, name):
    loss = getattr(torch.nn, name)(reduction="sum")
    x = torch.rand(4, 3, requires_grad=True)
    one_a_row = name in ("CrossEntropyLoss", "NLLLoss", "MultiMarginLoss")
    target = torch.tensor([0, 2, 1, 1]) if one_a_row else torch.ones(4, 3)
    target = target.long() if name == "MultiLabelMarginLoss" else target
    expected = loss(x, target)
    with ft.installed():
        torch.testing.assert_close(loss(x, target), expected)
        (way,) = ft.report().calls.items()
    assert way[0][1] == "fastloss" and way[1] == 1


def test_export(torch, ft):
    """An exported program holds torch's operator, or with strict=True fastloss's."""

    class Model(torch.nn.Module):
        def forward(self, x, target):
            return torch.nn.functional.cross_entropy(x, target)

    given = torch.randn(3, 4), torch.tensor([0, 1, 3])
    expected = Model()(*given)
    for strict, operator in ((False, "aten.cross_entropy_loss"), (True, "fastloss.loss")):
        with ft.installed(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(Model(), given, strict=strict)
        assert operator in program.graph_module.code
        torch.testing.assert_close(program.module()(*given), expected)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints(torch, ft, reentrant):
    """The forward pass is run again in the backward pass."""
    import torch.utils.checkpoint as checkpoint

    linear, x, target = torch.nn.Linear(5, 7), torch.randn(6, 5, requires_grad=True), torch.randint(0, 7, (6,))
    for options in ({}, {"inplace": True}, {"reduction": "none"}):
        grads = []
        for run in (lambda f: f(x), lambda f: checkpoint.checkpoint(f, x, use_reentrant=reentrant)):
            run(lambda x, options=options: ft.cross_entropy(linear(x), target, **options)).sum().backward()
            grads.append(x.grad)
            x.grad = None
        assert torch.equal(*grads)


def test_report(torch, ft):
    assert str(ft.report()).splitlines()[-1] == "no calls"
    x, target = torch.randn(500, 1000, requires_grad=True), torch.zeros(500, dtype=torch.int64)
    with ft.installed():
        for _ in range(3):
            torch.nn.functional.cross_entropy(x, target).backward()
        with torch.no_grad():
            torch.nn.functional.cross_entropy(x, target)
        torch.nn.functional.cross_entropy(x.to("meta"), target.to("meta"))
        torch.nn.functional.multilabel_margin_loss(torch.rand(3, 4), torch.zeros(3, 4, dtype=torch.int64))
        torch.nn.functional.soft_margin_loss(torch.rand(3, 4), torch.ones(3, 4))
    report = ft.report(measure=True)
    assert report.calls == {
        ("cross_entropy", "fastloss"): 4,
        ("cross_entropy", "device or layout"): 1,
        ("multilabel_margin_loss", "fastloss"): 1,
        ("soft_margin_loss", "fastloss"): 1,
    }
    assert report.measured == 6 and report.saved is not None
    assert ft.report().calls == report.calls  # measuring counts for nothing
    assert "time saved: about" in str(report) and "in 6 of 6 calls" in str(report)
    ft.install()
    assert ft.report().calls == {}


def gpt2(transformers, torch):
    config = transformers.GPT2Config(
        vocab_size=1000, n_positions=32, n_embd=32, n_layer=2, n_head=2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    )
    tokens = torch.randint(0, 1000, (2, 20))
    labels = tokens.clone()
    labels[0, 15:] = -100
    return transformers.GPT2LMHeadModel(config), {"input_ids": tokens, "labels": labels}


def bert(transformers, torch):
    config = transformers.BertConfig(
        vocab_size=1000, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=32, num_labels=5, hidden_dropout_prob=0, attention_probs_dropout_prob=0,
    )  # fmt: skip
    labels = torch.randint(0, 5, (2, 20))
    labels[1, 10:] = -100
    return transformers.BertForTokenClassification(config), {
        "input_ids": torch.randint(0, 1000, (2, 20)),
        "labels": labels,
    }


def step(model, batch):
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return loss.detach(), [each.grad.clone() for each in model.parameters() if each.grad is not None]


def assert_same(torch, ours, theirs):
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-5, atol=1e-5)
    assert len(ours[1]) == len(theirs[1]) > 0
    for mine, other in zip(ours[1], theirs[1], strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


@pytest.fixture
def transformers(torch, peer):
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    return peer("transformers")


@pytest.mark.parametrize("make", [gpt2, bert])
def test_transformers(torch, ft, transformers, make):
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other libraries
        model, batch = make(transformers, torch)
        model.train()
        theirs = step(model, batch)
        with ft.installed():
            ours = step(model, batch)
            calls = ft.report().calls
            steps = [step(model, batch) for _ in range(2)]
    assert calls == {("cross_entropy", "fastloss"): 1}
    for each in [ours, *steps]:
        assert_same(torch, each, theirs)


@pytest.fixture
def compiler():
    """What torch.compile compiles with; in CI it has to be there."""
    name = os.environ.get("CXX", "g++")
    if os.environ.get("CI") != "true" and shutil.which(name) is None:
        pytest.skip(f"torch.compile needs a C++ compiler, and there is no {name}")


@pytest.mark.usefixtures("compiler")
@pytest.mark.filterwarnings("ignore")  # of the compiler and what it imports
def test_compile(torch, ft):
    torch.manual_seed(0)

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(16, 30)
            self.losses = torch.nn.ModuleList(
                [torch.nn.CrossEntropyLoss(label_smoothing=0.1), torch.nn.CrossEntropyLoss(reduction="none")]
            )

        def forward(self, x, target):
            z = self.linear(x)
            one_hot = torch.nn.functional.one_hot(target, 30).to(z.dtype)
            binary = torch.nn.functional.binary_cross_entropy_with_logits(z, one_hot)
            return sum(loss(z, target).sum() for loss in self.losses) + binary

    def run(function, x, target):
        model.zero_grad()
        loss = function(x, target)
        loss.backward()
        return loss.detach(), [each.grad.clone() for each in model.parameters()]

    model = Model()
    compiled = torch.compile(model, fullgraph=True)  # a graph break is an error
    for rows in (8, 8, 12, 5):
        x, target = torch.randn(rows, 16), torch.randint(0, 30, (rows,))
        theirs = run(model, x, target)
        with ft.installed():
            ours = run(compiled, x, target)
            calls = ft.report().calls
        assert calls == {("cross_entropy", "fastloss"): 2, ("binary_cross_entropy_with_logits", "fastloss"): 1}
        assert_same(torch, ours, theirs)
        assert_same(torch, run(compiled, x, target), theirs)
        assert ft.report().calls == calls  # uninstalled: torch computes it again


@pytest.mark.usefixtures("compiler")
@pytest.mark.filterwarnings("ignore")
def test_compile_of_options_layouts_and_what_goes_to_torch(torch, ft):
    torch.manual_seed(0)
    x, target, weight = torch.randn(4, 3, 6, requires_grad=True), torch.randint(0, 6, (4, 3)), torch.rand(6) + 0.5
    target[0] = -100

    def autocast(z):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return ft.cross_entropy(z.flatten(0, 1) @ torch.eye(6), target.flatten())

    cases = [
        lambda z: ft.cross_entropy(z.transpose(1, 2), target, weight, reduction="none").sum(),
        lambda z: ft.cross_entropy(z, target, axis=-1, z_loss=1e-2, sample_weight=torch.ones(4, 3)),
        lambda z: ft.CrossEntropyLoss(axis=-1)(z.bfloat16(), target, normalizer=torch.tensor(5.0)),
        lambda z: ft.cross_entropy(z * 2, target, axis=2, inplace=True),
        lambda z: ft.dice_loss(z, target, axis=-1, ignore_index=-100),
        autocast,
    ]
    for function in cases:
        results = []
        for call in (function, torch.compile(function, fullgraph=True)):
            loss = call(x)
            results.append((loss.detach(), torch.autograd.grad(loss, x)))
        assert results[0][0].dtype == results[1][0].dtype
        assert_same(torch, *results)
    assert {way for _, way in ft.report().calls} == {"fastloss"}
    ft.counting.reset()

    def of_target(z):
        return ft.cross_entropy(z.flatten(0, 1), z.flatten(0, 1).softmax(1))

    torch.testing.assert_close(torch.compile(of_target, fullgraph=True)(x), of_target(x))
    assert ft.report().calls == {
        ("cross_entropy", "gradient of another argument"): 1,
        ("cross_entropy", "gradient of another argument, once compiled"): 1,
    }


@pytest.mark.filterwarnings("ignore")
def test_the_operator_keeps_torchs_rules(torch, ft, peer):
    """torch's own check of custom operators: schema, fake implementation, autograd."""
    operator = peer("fastloss.torch.compiled")
    x, target = torch.randn(4, 5, requires_grad=True), torch.randint(0, 5, (4,))
    for reduction in ("mean", "none"):
        names = ("label_smoothing",), ("ignore_index",)
        call = operator._describe("cross_entropy", (), *names, (("reduction", reduction),), True, False)
        for logits in (x, x.t().contiguous().t().detach().requires_grad_()):
            torch.library.opcheck(operator._loss, (logits, target, [], [0.1], [-100], call))


WORKER = """
import json, os, sys
import torch, torch.distributed as dist
import fastloss.torch as ft

rank, port = int(sys.argv[1]), sys.argv[2]
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
torch.set_num_threads(1)
dist.init_process_group("gloo", rank=rank, world_size=2)
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 400))
x, target = torch.randn(2, 12, 8)[rank], torch.randint(0, 400, (2, 12))[rank]
results = {}
for name in ("torch", "fastloss"):
    if name == "fastloss":
        ft.install()
    parallel = torch.nn.parallel.DistributedDataParallel(model)
    losses = []
    for _ in range(2):
        parallel.zero_grad()
        loss = torch.nn.CrossEntropyLoss()(parallel(x), target)
        loss.backward()
        losses.append(loss.item())
    results[name] = {"losses": losses, "grads": [p.grad.flatten().tolist() for p in model.parameters()]}
results["calls"] = [[*key, count] for key, count in ft.report().calls.items()]
dist.destroy_process_group()
print(json.dumps(results))
"""


def test_two_processes(torch, ft):
    """DistributedDataParallel over gloo: gradients are averaged, the same as with torch's loss."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-W", "ignore", "-c", WORKER]
    workers = [
        subprocess.Popen([*command, str(rank), str(port)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    grads = []
    for worker in workers:
        try:
            output, errors = worker.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            for each in workers:
                each.kill()
            raise
        assert worker.returncode == 0, errors
        results = json.loads(output.splitlines()[-1])
        assert results["calls"] == [["cross_entropy", "fastloss", 2]]
        assert results["fastloss"]["losses"] == pytest.approx(results["torch"]["losses"], rel=1e-5)
        for ours, theirs in zip(results["fastloss"]["grads"], results["torch"]["grads"], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-5)
        grads.append(results["fastloss"]["grads"])
    assert grads[0] == grads[1]
