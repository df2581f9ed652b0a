# SPDX-License-Identifier: MIT
"""Against the published implementation, xautodl 1.0.0, side by side on its own weights."""

import warnings

import pytest
import torch

from nasfast import evaluate
from nasfast.compat.xautodl import from_xautodl, to_xautodl
from nasfast.data import Batch
from nasfast.evaluate import compile_archs
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
