# SPDX-License-Identifier: MIT
"""Against the published implementation, xautodl 1.0.0, side by side on its own weights."""

import copy
import warnings

import pytest
import torch

from nasfast import evaluate, joint_forward
from nasfast.compat.xautodl import from_xautodl, to_xautodl
from nasfast.data import Batch
from nasfast.evaluate import compile_archs
from nasfast.nn import MixedOp
from nasfast.reference import BatchNorm, Executor, Normaliser, Weights
from nasfast.spaces import NB201

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its own imports warn
    models = pytest.importorskip(
        "xautodl.models", reason="needs xautodl 1.0.0: pip install --no-deps xautodl==1.0.0"
    )


def peer(name, affine, track, cells=2):
    """A published supernet with random weights, running statistics and affine parameters."""
    torch.manual_seed(0)
    config = dict(
        name=name, C=16, N=cells, max_nodes=4, num_classes=10, affine=affine,
        track_running_stats=track, space=models.get_search_spaces("cell", "nas-bench-201"),
    )  # fmt: skip
    net = models.get_cell_based_tiny_net(config).eval().double()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                if module.affine:
                    module.weight.normal_(1, 0.3)
                    module.bias.normal_(0, 0.3)
                if module.track_running_stats:
                    module.running_mean.normal_(0, 0.3)
                    module.running_var.uniform_(0.5, 2)
    return net


def peer_logits(net, arch, images):
    structure = models.CellStructure.str2structure(str(arch))
    if hasattr(net, "set_cal_mode"):
        net.set_cal_mode("dynamic", structure)
    else:
        net.arch_cache = structure
    with torch.no_grad():
        return net(images)[1]


def our_logits(supernet, archs, images, bn):
    program = compile_archs(supernet, archs, bn=bn)
    executor = Executor(program, Weights(program.layout, dict(supernet.named_tensors())))
    norm = Normaliser(bn)
    with torch.no_grad():
        stem = executor.stem(images, norm)
        lanes = [executor.logits(int(n), stem, {}, norm) for n in program.lanes[:, 0]]
    return [lanes[lane] for lane in program.lane_of_request]


# Cells without statistics use those of the minibatch even in eval mode; what is tracked uses the
# running ones, and so do stem, reductions and (but for "generic") the last activation.
@pytest.mark.parametrize(
    ("name", "affine", "track", "bn", "count"),
    [
        ("RANDOM", False, False, BatchNorm("batch", "running", "running"), 200),
        ("RANDOM", True, True, BatchNorm("running", "running", "running"), 200),
        ("RANDOM", False, True, BatchNorm("running", "running", "running"), 40),
        ("RANDOM", True, False, BatchNorm("batch", "running", "running"), 40),
        ("generic", False, False, BatchNorm("batch", "running", "batch"), 40),
        ("generic", True, True, BatchNorm("running", "running", "running"), 40),
    ],
)
def test_logits_of_a_random_supernet(name, affine, track, bn, count):
    net = peer(name, affine, track)
    if name == "generic":
        net.set_algo("random")
    supernet = from_xautodl(net.state_dict())
    assert supernet.config.cells_per_stage == 2 and supernet.config.last_affine == (
        affine if name == "generic" else True
    )
    archs = NB201.sample(count, seed=1)
    images = torch.randn(8, 3, 32, 32, dtype=torch.float64)
    ours64 = our_logits(supernet, archs, images, bn)
    ours32 = our_logits(supernet.copy(torch.float32), archs, images.float(), bn)
    theirs64 = [peer_logits(net, arch, images) for arch in archs]
    net.float()
    for arch, exact, mine, single in zip(archs, theirs64, ours64, ours32, strict=True):
        torch.testing.assert_close(mine, exact, rtol=1e-9, atol=1e-9 * float(exact.abs().max()))
        # The rule for fp32: 4 times PyTorch's own error on this lane, or 1e-5 of the largest.
        error = (peer_logits(net, arch, images.float()).double() - exact).abs().max()
        allowed = max(4 * float(error), 1e-5 * max(1.0, float(exact.abs().max())))
        assert (single.double() - exact).abs().max() <= allowed


def test_weights_go_back_into_the_published_model():
    net = peer("RANDOM", affine=True, track=True, cells=1)
    supernet = from_xautodl(net.state_dict())
    other = peer("RANDOM", affine=True, track=True, cells=1)
    with torch.no_grad():
        for tensor in other.parameters():
            tensor.zero_()
    other.load_state_dict(to_xautodl(supernet), strict=True)
    for name, tensor in net.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(other.state_dict()[name], tensor)


def test_scores_equal_the_peer_on_the_same_minibatch():
    net = peer("RANDOM", affine=False, track=False, cells=1)
    supernet = from_xautodl(net.state_dict())
    archs = NB201.sample(10, seed=2)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(32, 3, 32, 32, dtype=torch.float64, generator=generator)
    labels = torch.randint(0, 10, (32,), generator=generator)
    scores = evaluate(
        supernet, archs, [Batch(images, labels)], bn="batch/running", precision="fp64"
    )
    for k, arch in enumerate(archs):
        logits = peer_logits(net, arch, images)
        loss = torch.nn.functional.cross_entropy(logits, labels)
        assert scores.loss[k] == pytest.approx(loss.item(), rel=1e-9)
        assert scores.accuracy[k] == (logits.argmax(1) == labels).double().mean().item()


def joint_peer(name, affine, track):
    """A published joint supernet of one cell a stage; its alphas are not all alike."""
    net = peer(name, affine, track, cells=1)
    if name == "generic":
        net.set_algo("darts-v1")
        net.set_cal_mode("joint")
        net.double()
    with torch.no_grad():
        net.arch_parameters.normal_()
    return net


def own_gradient(net, name, leaf):
    """The gradient of the peer's tensor of that name, and ours."""
    prefix = "_" if hasattr(net, "_stem") and name.startswith(("stem.", "cells.")) else ""
    return net.get_parameter(prefix + name).grad, leaf.grad


# Both a training step's forward and reverse pass (statistics of the minibatch, running ones are
# updated) and the same in evaluation, where what is tracked is not normalised by the minibatch.
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("name", "affine", "track"),
    [("DARTS-V1", False, False), ("DARTS-V1", True, True), ("generic", False, False),
     ("generic", True, True)],
)  # fmt: skip
def test_the_joint_supernet_and_its_gradients(name, affine, track, training):
    net = joint_peer(name, affine, track).train(training)
    supernet = from_xautodl(net.state_dict())
    alphas = net.arch_parameters.detach().clone().requires_grad_()
    leaves = supernet.leaves()
    images = torch.randn(8, 3, 16, 16, dtype=torch.float64)
    their_images, images = (images.clone().requires_grad_() for _ in range(2))
    direction = torch.randn(8, 10, dtype=torch.float64)
    bn = "batch"
    if not training:
        last = "running" if supernet.config.last_track else "batch"
        bn = BatchNorm("running" if track else "batch", "running", last)
    logits = joint_forward(
        supernet, images, alphas.softmax(dim=-1), tensors=leaves, bn=bn, update=training
    )
    theirs = net(their_images)[1]
    (logits * direction).sum().backward()
    (theirs * direction).sum().backward()
    pairs = [(theirs, logits), (net.arch_parameters.grad, alphas.grad),
             (their_images.grad, images.grad)]  # fmt: skip
    pairs += [own_gradient(net, n, leaf) for n, leaf in leaves.items() if leaf.requires_grad]
    largest = max(float(t.detach().abs().max()) for t, _ in pairs[3:])
    for k, (wanted, got) in enumerate(pairs):
        # The gradient of a bias that normalisation cancels is rounding alone, hence `largest`.
        scale = largest if k >= 3 else float(wanted.detach().abs().max())
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9 * scale)
    after = from_xautodl(net.state_dict())
    for param in supernet.layout.params:
        if param.is_buffer:
            torch.testing.assert_close(
                supernet.view(param), after.view(param), rtol=1e-9, atol=1e-9
            )


@pytest.mark.parametrize(
    ("name", "affine", "track"),
    [("DARTS-V1", False, False), ("DARTS-V1", True, True), ("generic", False, False)],
)
def test_the_joint_supernet_on_the_engine(name, affine, track):
    """A training step in float32: 4 times the peer's own error, or 1e-5 of the largest gradient."""
    net = joint_peer(name, affine, track).train()
    supernet = from_xautodl(net.state_dict()).copy(torch.float32)
    leaves = supernet.leaves()
    images = torch.randn(24, 3, 16, 16, dtype=torch.float64)
    direction = torch.randn(24, 10, dtype=torch.float64)
    alphas = net.arch_parameters.detach().float().requires_grad_()
    logits = joint_forward(
        supernet, images.float(), alphas.softmax(dim=-1), tensors=leaves, update=True, backend="cpu"
    )
    (logits * direction).sum().backward()
    named = [(n, t) for n, t in leaves.items() if t.requires_grad]
    ours = [logits.detach(), alphas.grad, *(t.grad for _, t in named)]
    theirs = []
    for own in (net, copy.deepcopy(net).float()):
        given = images.to(own.arch_parameters.dtype)
        value = own(given)[1]
        (value * direction).sum().backward()
        theirs.append([value.detach(), own.arch_parameters.grad, *(own_gradient(own, n, t)[0]
                                                          for n, t in named)])  # fmt: skip
    largest = max(float(t.abs().max()) for t in theirs[0][2:])
    for k, (got, exact, single) in enumerate(zip(ours, *theirs, strict=True)):
        scale = largest if k >= 2 else float(exact.abs().max())
        allowed = max(4 * float((single - exact).abs().max()), 1e-5 * scale)
        assert float((got - exact).abs().max()) <= allowed
    after = from_xautodl(net.state_dict())
    for param in supernet.layout.params:
        if param.is_buffer:
            torch.testing.assert_close(
                supernet.view(param), after.view(param).float(), rtol=1e-5, atol=1e-5
            )


def test_where_the_peer_multiplies_by_zero():
    # none is x * 0.0 there: one infinite activation makes every sum it takes part in NaN. Here an
    # edge of none alone carries zero, and the gradient of its weight is exactly 0.
    x = torch.tensor([1.0, float("inf")]).reshape(1, 1, 1, 2)
    theirs = models.cell_operations.OPS["none"](1, 1, 1, False, False)(x)
    assert theirs.flatten().isnan().tolist() == [False, True]


def test_a_mask_is_the_forward_of_gdas():
    # There the operations not drawn add their weights, numerically 0, as numbers; the gradients of
    # the weights of the network are the same, those of the alphas are not.
    net = peer("GDAS", False, False, cells=1).train()
    net.set_tau(10)
    torch.manual_seed(3)
    drawn = {}
    for cell in net.cells:
        if hasattr(cell, "forward_gdas"):
            forward = cell.forward_gdas

            def recorded(x, hardwts, index, forward=forward):
                drawn.update(weights=hardwts.detach(), index=index)
                return forward(x, hardwts, index)

            cell.forward_gdas = recorded
    supernet = from_xautodl(net.state_dict())
    leaves = supernet.leaves()
    images = torch.randn(8, 3, 16, 16, dtype=torch.float64)
    wanted = net(images)[1]
    mask = torch.zeros(6, 5, dtype=torch.bool).scatter_(1, drawn["index"], True)
    weights = drawn["weights"].requires_grad_()
    logits = joint_forward(supernet, images, weights, mask=mask.numpy(), tensors=leaves)
    scale = float(wanted.detach().abs().max())
    torch.testing.assert_close(logits, wanted, rtol=1e-9, atol=1e-9 * scale)
    logits.square().sum().backward()
    wanted.square().sum().backward()
    grads = [own_gradient(net, n, t) for n, t in leaves.items() if t.grad is not None]
    largest = max(float(theirs.abs().max()) for theirs, _ in grads)
    for theirs, ours in grads:
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8 * largest)
    assert (weights.grad[~mask] == 0).all()


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("affine", "track"), [(False, False), (True, True)])
def test_the_mixed_operation_as_a_module(stride, affine, track):
    names = ["none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3", "max_pool_3x3"]
    peers = models.cell_searchs.search_cells.MixedOp
    torch.manual_seed(0)
    theirs = peers(names, 6, stride, affine, track).double()
    torch.manual_seed(0)
    ours = MixedOp(6, names, stride=stride, affine=affine, track_running_stats=track).double()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor)
    x = torch.randn(4, 6, 8, 8, dtype=torch.float64)
    weights, own = (torch.linspace(-1, 1, 6).double().requires_grad_() for _ in range(2))
    got, wanted = ours(x, own), theirs.forward_darts(x, weights)
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)
    got.pow(3).sum().backward()
    wanted.pow(3).sum().backward()
    torch.testing.assert_close(own.grad, weights.grad, rtol=1e-9, atol=1e-9)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-9, atol=1e-9)
