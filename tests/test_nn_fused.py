# SPDX-License-Identifier: MIT
"""The fused mixed operation: module and operator against the definition in float64."""

import copy
import logging
import pickle
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
from mixed_samples import (
    ALL,
    BF16,
    F32,
    F64,
    MANY,
    SETS,
    Network,
    arguments,
    check_operators,
    check_what_was_saved,
    compare,
    compare_bfloat16,
    compare_training,
    features,
    modules,
    results,
    spread,
)
from test_ops import ISAS

from nasfast import ops, slow_paths
from nasfast.nn import MixedOp

SHAPES = ((1, 1, 1, 1), (1, 5, 7, 9), (16, 16, 4, 4), (17, 5, 7, 9), (17, 16, 1, 1), (3, 1, 2, 8))


@pytest.mark.parametrize("names", SETS, ids=lambda names: names[-1])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("affine", [False, True])
def test_it_is_the_definition(shape, names, affine):
    got = compare(features(shape), names, affine=affine)
    for name, gradient in got.items():
        assert not name.endswith("op.1.bias") or (gradient == 0).all()


@pytest.mark.parametrize("layout", ["channels_last", "strided"])
@pytest.mark.parametrize("shape", [(17, 5, 7, 9), (2, 16, 6, 4)], ids=str)
def test_layouts(shape, layout):
    got = compare(features(shape, layout=layout))
    assert got["y"].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("needed", [True, False])
@pytest.mark.parametrize(
    "weights", [[0, 0, 0, 1, 0, 0], [0, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0], [0] * 6,
                [0.5, 0, -1, 0, 0, 2]]
)  # fmt: skip
def test_weights_of_zero(weights, needed):
    got = compare(features((5, 6, 5, 5)), weights=weights, needed=needed, affine=True,
                  track_running_stats=True)  # fmt: skip
    if needed:
        assert got["weights"][0] == 0
    else:
        live = [k for k, weight in enumerate(weights) if weight and k in (2, 3)]
        rested = [n for n, t in got.items() if n.startswith("_ops") and t is None]
        assert len(rested) == 3 * (2 - len(live))


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set(isa, monkeypatch):
    monkeypatch.setenv("NASFAST_ISA", isa)
    compare(features((18, 16, 8, 6)), affine=True)
    compare(features((3, 5, 4, 4)), MANY)
    compare_bfloat16(features((18, 16, 8, 6)))


@pytest.mark.parametrize("shape", [(16, 16, 8, 8), (5, 5, 7, 9)], ids=str)
def test_bfloat16(shape):
    compare_bfloat16(features(shape), affine=True)


def test_threads_change_no_bit():
    module, _ = modules(6, ALL, affine=True, track_running_stats=True)
    x, before, found = features((50, 6, 9, 8)), torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(results(copy.deepcopy(module), x, spread(6)))
    torch.set_num_threads(before)
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_a_second_way_back_adds_the_same_gradients():
    module, _ = modules(5, ALL)
    weights = torch.tensor(spread(6), requires_grad=True)
    y = module(features((3, 5, 4, 4)), weights).sum()  # its gradient has strides of 0
    y.backward(retain_graph=True)
    once = weights.grad.clone()
    y.backward()
    assert torch.equal(weights.grad, 2 * once)


@pytest.mark.parametrize("track", [False, True])
def test_training_comes_to_the_same_losses(track):
    compare_training("cpu", track)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.compile's own imports
@pytest.mark.parametrize("autocast", [False, True])
def test_it_compiles_without_a_graph_break(autocast):
    torch.manual_seed(0)
    net = Network("auto", True)
    compiled = torch.compile(copy.deepcopy(net), fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (4, 7):
        x = features((batch, 3, 6, 6), seed=batch)
        with torch.autocast("cpu", BF16) if autocast else nullcontext():
            wanted, got = net(x), compiled(x)
        assert torch.equal(got, wanted)
        wanted.square().sum().backward()
        got.square().sum().backward()
    for (name, p), other in zip(net.named_parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(other.grad, p.grad, msg=name)
    for wanted, got in zip(net.buffers(), compiled.buffers(), strict=True):
        assert torch.equal(got, wanted)


FRESH = """
import sys, torch
from nasfast import nn
assert "nasfast._ops" not in sys.modules, "import loads the operators"
net = torch.load(sys.argv[1], weights_only=False)
compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
x, weights = torch.randn(2, 4, 6, 6), torch.ones(len(net.ops), requires_grad=True)
assert torch.equal(compiled(x, weights), net(x, weights))
"""


def test_operators_are_there_once_a_module_is(tmp_path):
    """Importing is light; a module that another process made is compiled too."""
    torch.save(MixedOp(4, ALL), tmp_path / "net.pt")
    command = [sys.executable, "-W", "ignore", "-c", FRESH, str(tmp_path / "net.pt")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_empty_batches_are_left_to_the_definition():
    x, grads = torch.zeros(0, 5, 4, 4), []
    for module in modules(5, ALL):
        weights = torch.ones(6, requires_grad=True)
        y = module(x, weights)
        y.sum().backward()
        grads.append([weights.grad, *(p.grad for p in module.parameters())])
        assert y.shape == x.shape
    assert all(torch.equal(ours, plain) for ours, plain in zip(*grads, strict=True))


def test_it_survives_pickling():
    module, _ = modules(5, ALL)
    x, weights = features((2, 5, 4, 4)), torch.ones(6)
    again = pickle.loads(pickle.dumps(module))
    assert torch.equal(again(x, weights), module(x, weights))


def refused(**changed):
    settings = dict(stride=1, track_running_stats=False, dtype=F32, training=True) | changed
    dtype, training = settings.pop("dtype"), settings.pop("training")
    names = settings.pop("names", ALL)
    module = MixedOp(4, names, **settings).to(dtype).train(training)
    return module, torch.zeros(2, 4, 6, 6, dtype=dtype), torch.ones(len(names), dtype=dtype)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        (dict(dtype=F64), "x in torch.float64"),
        (dict(stride=2), "stride 2"),
        (dict(track_running_stats=True, training=False), "evaluation with running statistics"),
        (dict(names=("avg_pool_33x33",)), "kernels wider than 31"),
    ],
)
def test_what_it_does_not_take_is_said_once(changed, why, caplog):
    module, x, weights = refused(backend="cpu", **changed)
    with pytest.raises(ValueError, match=f"backend: 'cpu' has no kernel for this call .{why}"):
        module(x, weights)
    slow_paths.warn_of_reference.cache_clear()
    module, x, weights = refused(**changed)
    if "names" not in changed:  # which PyTorch refuses at this size
        module(x, weights), module(x, weights)
        said = f"nn.MixedOp: {why}: plain PyTorch runs it, which is slow"
        assert caplog.record_tuples == [("nasfast", logging.WARNING, said)]


def test_running_statistics_need_two_elements_a_channel():
    module, _ = modules(3, ALL, track_running_stats=True)
    x = torch.ones(1, 3, 1, 1)
    with pytest.raises(ValueError, match=r"more than one element a channel, got \[1, 3, 1, 1\]"):
        module(x, torch.ones(6))
    module(x, torch.tensor([0.0, 1, 0, 0, 1, 1]))  # nothing that would


def test_second_derivatives_are_refused():
    module, plain = modules(3, ALL)
    x = features((2, 3, 4, 4))
    for own, context in (
        (plain, nullcontext()),
        (module, pytest.raises(RuntimeError, match="second derivatives")),
    ):
        weights = torch.ones(6, requires_grad=True)
        (grad,) = torch.autograd.grad(own(x, weights).pow(2).sum(), weights, create_graph=True)
        with context:
            grad.sum().backward()


# The operator itself.


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("names", [ALL, ("none",), ("skip_connect", "max_pool_5x5")])
def test_opcheck(names, dtype):
    check_operators(arguments(names=names, dtype=dtype))


def test_what_was_saved_is_taken_as_it_came():
    check_what_was_saved(arguments())


def test_the_operator_on_zero_alone():
    x = torch.full((2, 3, 2, 2), float("nan"), requires_grad=True)
    weights, params = torch.ones(2, requires_grad=True), torch.zeros(0, requires_grad=True)
    out, statistics = ops.mixed_op(
        x, weights, params, kinds=[0, 0], kernels=[1, 1], fields=[0, 0]
    )  # fmt: skip
    out.sum().backward()
    assert (out == 0).all() and statistics.shape == (0, 2, 3)
    assert (x.grad == 0).all() and weights.grad.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(x=torch.zeros(2, 4, 4, 4).double()),
         "mixed_op: x: wanted .*float32 or bfloat16, got .*float64"),
        (dict(x=torch.zeros(4, 4, 4)), r"mixed_op: x: wanted .*, got \[4, 4, 4\]"),
        (dict(weights=torch.ones(6).double()), "mixed_op: weights: wanted dtype .*float32"),
        (dict(params=torch.ones(184).half()), "mixed_op: params: wanted dtype .*float32"),
        (dict(x=torch.zeros(0, 4, 4, 4)), r"mixed_op: x: wanted features, got \[0, 4, 4, 4\]"),
        (dict(weights=torch.ones(5)), r"mixed_op: weights: wanted shape \[6\], got \[5\]"),
        (dict(weights=torch.ones(12)[::2]), "mixed_op: weights: wanted a contiguous tensor"),
        (dict(params=torch.ones(9)), r"mixed_op: params: wanted shape \[176\], got \[9\]"),
        (dict(kinds=[0, 1, 2, 2, 3, 5]), r"mixed_op: kinds: wanted 0\.\.4, got 5"),
        (dict(kinds=[0, 1]), "kinds, kernels, fields: wanted equally many, got 2, 6, 6"),
        (dict(kernels=[1, 1, 1, 2, 3, 3]), r"mixed_op: kernels: wanted an odd .* got 2"),
        (dict(fields=[0, 0, 2, 4, 0, 0]), r"mixed_op: fields: wanted 0\.\.3, got 4"),
        (dict(threads=-1), r"mixed_op: threads: wanted 0\.\.4096, got -1"),
    ],
)  # fmt: skip
def test_bad_input(changes, message):
    operator, given = torch.ops.nasfast.mixed_op.default, arguments(**changes)
    with pytest.raises(RuntimeError, match=message):
        operator(**given)
    if "wanted dtype" in message or "x: wanted ." in message:  # while tracing too
        fake = {n: given[n].to("meta") for n in ("x", "weights", "params")}
        with pytest.raises(RuntimeError, match=message):
            operator(**(given | fake))
