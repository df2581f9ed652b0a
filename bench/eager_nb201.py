# SPDX-License-Identifier: MIT
"""What nasfast is compared with on NAS-Bench-201: the published code, and PyTorch at its best.

All networks here take every batch norm's statistics from the minibatch, as the engine does with
``bn="batch"``, and return the cross-entropy of each image.
"""

import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from losses import Network, Rival, losses_of, rms, with_threads
from nasfast import Architecture, Supernet
from nasfast.compat.xautodl import to_xautodl
from nasfast.data import Batch
from pairs import ratio, spread, timed_pair

EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
NONE, SKIP, CONV_1X1, CONV_3X3, AVG_POOL = range(5)


class EagerNet:
    """A NAS-Bench-201 subnet as a careful PyTorch user writes it.

    Nothing is computed for an edge without an operation, a skip connection is its source, and the
    biases of convolutions are left out (batch norm subtracts them again). Every other edge is
    computed as written, also one that carries nothing to the output.

    Args:
        supernet: Weights, C=16 with affine batch norm outside of the cells.
        batch: Images, float32, and labels.
        bf16: Run under bfloat16 autocast. The weights of convolutions are then bfloat16 already,
            which spares autocast the cast of each at every use.
        channels_last: Layout of images and weights.
        device: Where it runs.
    """

    def __init__(
        self, supernet: Supernet, batch: Batch, *, bf16: bool, channels_last: bool,
        device: str = "cpu",
    ) -> None:  # fmt: skip
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self.cells_per_stage = supernet.config.cells_per_stage
        self.bf16, self.labels, self.device = bf16, batch.labels.to(device), device
        self.images = batch.images.to(device).contiguous(memory_format=layout)
        self.tensors = {}
        for name, tensor in supernet.state_dict().items():
            tensor = tensor.to(device)
            if tensor.dim() == 4:
                tensor = tensor.contiguous(memory_format=layout)
                tensor = tensor.bfloat16() if bf16 else tensor
            self.tensors[name] = tensor

    def __call__(self, arch: Architecture) -> Tensor:
        with self.autocast():
            return self.losses(arch.op_indices, self.images)

    def autocast(self) -> AbstractContextManager:
        # No cache of casts: it would outlive the recording of a CUDA graph.
        return torch.autocast(
            self.device, torch.bfloat16, enabled=self.bf16, cache_enabled=self.device == "cpu"
        )

    def losses(self, ops: Sequence[int], images: Tensor) -> Tensor:
        """Run the network; under autocast where that is wanted."""
        x = F.conv2d(images, self.tensors["stem.0.weight"], padding=1)
        x = self._normalise(x, "stem.1")
        layer = 0
        for stage in range(3):
            if stage:
                x = self._reduction(x, f"cells.{layer}")
                layer += 1
            for _ in range(self.cells_per_stage):
                x = self._cell(x, ops, f"cells.{layer}")
                layer += 1
        x = F.relu(self._normalise(x, "lastact.0")).mean(dim=(2, 3))
        logits = F.linear(x, self.tensors["classifier.weight"], self.tensors["classifier.bias"])
        return F.cross_entropy(logits.float(), self.labels, reduction="none")

    def _cell(self, x: Tensor, ops: Sequence[int], name: str) -> Tensor:
        nodes: list[Tensor | None] = [x, None, None, None]
        for (i, j), op in zip(EDGES, ops, strict=True):
            if op == NONE:
                continue
            source = nodes[i]
            if source is None:  # a node that nothing flows into
                source = nodes[i] = torch.zeros_like(x)
            if op in (CONV_1X1, CONV_3X3):
                term = self._convolve(source, f"{name}.edges.{j}<-{i}.{op}.op")
            elif op == AVG_POOL:
                term = F.avg_pool2d(source, 3, stride=1, padding=1, count_include_pad=False)
            else:
                term = source
            before = nodes[j]
            nodes[j] = term if before is None else before + term
        return torch.zeros_like(x) if nodes[3] is None else nodes[3]

    def _reduction(self, x: Tensor, name: str) -> Tensor:
        y = self._convolve(x, f"{name}.conv_a.op", stride=2)
        y = self._convolve(y, f"{name}.conv_b.op")
        pooled = F.avg_pool2d(x, 2, stride=2)
        return F.conv2d(pooled, self.tensors[f"{name}.downsample.1.weight"]) + y

    def _convolve(self, x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = self.tensors[f"{name}.1.weight"]
        y = F.conv2d(F.relu(x), weight, stride=stride, padding=weight.shape[-1] // 2)
        return self._normalise(y, f"{name}.2")

    def _normalise(self, x: Tensor, name: str) -> Tensor:
        scale, shift = self.tensors.get(f"{name}.weight"), self.tensors.get(f"{name}.bias")
        return F.batch_norm(x, None, None, scale, shift, training=True)


def published(
    supernet: Supernet, archs: Sequence[Architecture], batch: Batch
) -> dict[str, Network]:
    """Return the published models (xautodl 1.0.0) with our weights, by name.

    The search supernet runs an architecture as its random search does (``arch_cache`` is set, each
    cell runs ``forward_dynamic``). The stand-alone network has only the layers of its
    architecture, but all batch norms affine; they start as the identity.
    """
    models = published_models()
    config, state = supernet.config, to_xautodl(supernet)
    shape = {"C": config.channels, "N": config.cells_per_stage, "num_classes": config.classes}
    net, choose = published_supernet(supernet, archs)
    alone = {}
    for arch in archs:
        alone[arch] = models.get_cell_based_tiny_net(
            {**shape, "name": "infer.tiny", "arch_str": str(arch)}
        )
        alone[arch].load_state_dict(_stand_alone_state(alone[arch].state_dict(), state, arch))
        use_statistics_of_the_minibatch(alone[arch])

    def supernet_losses(arch: Architecture) -> Tensor:
        choose(arch)
        return F.cross_entropy(net(batch.images)[1], batch.labels, reduction="none")

    def stand_alone_losses(arch: Architecture) -> Tensor:
        return F.cross_entropy(alone[arch](batch.images)[1], batch.labels, reduction="none")

    return {"xautodl supernet": supernet_losses, "xautodl stand-alone": stand_alone_losses}


def published_supernet(
    supernet: Supernet, archs: Sequence[Architecture]
) -> tuple[torch.nn.Module, Callable[[Architecture], None]]:
    """Return the published search supernet with our weights, and what chooses its architecture."""
    models, config = published_models(), supernet.config
    net = models.get_cell_based_tiny_net(
        {
            "name": "RANDOM", "max_nodes": 4, "affine": False, "track_running_stats": False,
            "space": models.get_search_spaces("cell", "nas-bench-201"),
            "C": config.channels, "N": config.cells_per_stage, "num_classes": config.classes,
        }
    )  # fmt: skip
    net.load_state_dict(to_xautodl(supernet))
    use_statistics_of_the_minibatch(net)
    structures = {arch: models.CellStructure.str2structure(str(arch)) for arch in archs}

    def choose(arch: Architecture) -> None:
        net.arch_cache = structures[arch]

    return net, choose


def published_models() -> ModuleType:
    """Import xautodl's models."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own imports warn
        from xautodl import models
    return models


def use_statistics_of_the_minibatch(net: torch.nn.Module) -> None:
    net.eval()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            # Without them eval mode normalises by the minibatch, and has nothing to keep up to
            # date, which train mode would.
            module.running_mean = module.running_var = None


def _stand_alone_state(
    own: dict[str, Tensor], supernet: dict[str, Tensor], arch: Architecture
) -> dict[str, Tensor]:
    """Take a stand-alone network's weights from the supernet; keep what that does not have."""
    state = {name: supernet.get(name, tensor) for name, tensor in own.items()}
    for name in own:
        parts = name.split(".")  # cells.K.layers.EDGE.op.1.weight
        if "layers" in parts and parts[-2:] == ["1", "weight"]:
            edge = int(parts[3])
            (i, j), op = EDGES[edge], arch.op_indices[edge]
            state[name] = supernet[f"cells.{parts[1]}.edges.{j}<-{i}.{op}.op.1.weight"]
    return state


def rivals_of(
    supernet: Supernet, archs: Sequence[Architecture], batch: Batch, precision: str, threads: int
) -> dict[str, Rival]:
    """Return every baseline of a precision, with one thread and with all, by name.

    In bfloat16 the float32 ones are among them: they may be faster.
    """
    networks = published(supernet, archs, batch)
    for bf16 in (False, True) if precision == "bf16" else (False,):
        for channels_last in (False, True):
            layout = "channels_last" if channels_last else "contiguous"
            networks[f"PyTorch {'bf16 autocast' if bf16 else 'fp32'} {layout}"] = EagerNet(
                supernet, batch, bf16=bf16, channels_last=channels_last
            )
    return with_threads(networks, threads)


def compiled(
    rival: Rival, arch: Architecture, ours: Callable[[], object], repeats: int
) -> dict[str, object]:
    """Time torch.compile of an :class:`EagerNet` on one architecture, against ours on that one."""
    net = rival.network
    assert isinstance(net, EagerNet)
    eager = losses_of(rival, [arch])[0]

    def losses(images: Tensor) -> Tensor:
        return net.losses(arch.op_indices, images)

    torch.compiler.reset()
    run = torch.compile(losses)
    try:
        with net.autocast():
            begin = time.perf_counter()
            result = run(net.images).double().numpy()
            compile_s = time.perf_counter() - begin
            pairs = [timed_pair(ours, lambda: run(net.images), k) for k in range(repeats)]
    except Exception as error:  # whatever stops inductor is the answer for this machine
        return {"arch": str(arch), "failed": f"{type(error).__name__}: {error}"[:500]}
    return {
        "arch": str(arch),
        "compile_s": compile_s,
        "off_eager": float(rms(result, eager)),
        "compiled_s": spread([other_s for _, other_s in pairs])["median"],
        "ours_s": spread([ours_s for ours_s, _ in pairs])["median"],
        "ratio": ratio(pairs),
    }
