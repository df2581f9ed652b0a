# SPDX-License-Identifier: MIT
"""What nasfast is compared with on NAS-Bench-1Shot1: the published way, and PyTorch at its best.

The published code cannot be installed, so its one-shot model is written anew, with its tensors'
names and its order of sums. It runs every operation and every projection of every block and
multiplies by 0 and 1; the other cells run what an architecture selects, with the same weights.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache, cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losses import Network, Rival, with_threads
from nasfast import Architecture
from nasfast.data import Batch

FAMILIES = ("published", "PyTorch")  # how the names of the rivals begin
NUM_OPS = 3
MAX_POOL, CONV_3X3, CONV_1X1 = range(NUM_OPS)
MOMENTUM = 0.997  # as published, in PyTorch's sense
LAYERS = 9


@dataclass(frozen=True)
class Path:
    """An architecture: the operation of each block, the parents of each node, the output last."""

    ops: tuple[int, ...]
    parents: tuple[tuple[int, ...], ...]

    @property
    def outputs(self) -> list[int]:
        """Blocks whose output is concatenated."""
        return [node for node in self.parents[-1] if node > 0]

    @property
    def input_to_output(self) -> bool:
        return 0 in self.parents[-1]

    @cached_property
    def used(self) -> list[int]:
        """Blocks that the output depends on, in order."""
        found = set(self.outputs)
        for block in range(len(self.ops), 0, -1):
            if block in found:
                found |= set(self.parents[block - 1])
        return sorted(found - {0})

    @cached_property
    def op_weights(self) -> Tensor:
        return F.one_hot(torch.tensor(self.ops), NUM_OPS).float()

    @cached_property
    def input_weights(self) -> list[Tensor | None]:
        """Weights of the nodes before each block; None where all of them are its parents."""
        return [
            None if len(given) == block else _zeros_and_ones(given, block)
            for block, given in enumerate(self.parents[:-1], start=1)
        ]

    @cached_property
    def output_weights(self) -> Tensor:
        return _zeros_and_ones(self.parents[-1], len(self.parents))


def _zeros_and_ones(ones: Sequence[int], size: int) -> Tensor:
    found = torch.zeros(size)
    found[list(ones)] = 1
    return found


@cache
def path_of(arch: Architecture) -> Path:
    return Path(arch.spec.block_ops(arch), arch.spec.parents(arch))


# The modules have the attributes that make the published names of tensors.


class ConvBnRelu(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.op = nn.Sequential(
            nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(outputs, momentum=MOMENTUM),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class NamedConvBnRelu(nn.Module):
    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.op = ConvBnRelu(channels, channels, kernel)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class MixedOp(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        convolutions = [NamedConvBnRelu(channels, 3), NamedConvBnRelu(channels, 1)]
        self._ops = nn.ModuleList([nn.MaxPool2d(3, stride=1, padding=1), *convolutions])

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return sum(w * op(x) for w, op in zip(weights, self._ops, strict=True))

    def one(self, x: Tensor, op: int) -> Tensor:
        return self._ops[op](x)


class ChoiceBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mixed_op = MixedOp(channels)


class Cell(nn.Module):
    """The weights of a cell; how it runs is its subclasses'."""

    def __init__(self, blocks: int, inputs: int, channels: int, *, first: bool) -> None:
        super().__init__()
        self.first = first  # its input is that of the stem
        widths = [channels] * blocks + [channels * blocks]
        self._choice_blocks = nn.ModuleList(ChoiceBlock(channels) for _ in range(blocks))
        self._input_projections = nn.ModuleList(ConvBnRelu(inputs, width, 1) for width in widths)

    def forward(self, x: Tensor, path: Path) -> Tensor:
        raise NotImplementedError

    @staticmethod
    def selected(weight: Tensor, path: Path) -> Tensor:
        """The weights of the input channels of a convolution that reads what a cell returned."""
        return weight


class PublishedCell(Cell):
    """Everything runs, weighted by 0 and 1."""

    def forward(self, x: Tensor, path: Path) -> Tensor:
        *projections, last = self._input_projections
        states: list[Tensor] = []
        for block, project in enumerate(projections):
            inputs, weights = [project(x), *states], path.input_weights[block]
            if weights is not None:
                inputs = [w * value for w, value in zip(weights, inputs, strict=True)]
            mixed = self._choice_blocks[block].mixed_op
            states.append(mixed(sum(inputs), path.op_weights[block]))
        to_output = last(x)
        weighted = [w * state for w, state in zip(path.output_weights[1:], states, strict=True)]
        return path.output_weights[0] * to_output + torch.cat(weighted, dim=1)


class SinglePathCell(Cell):
    """What the output depends on, and nothing else; all channels are there, also those of zeros."""

    def forward(self, x: Tensor, path: Path) -> Tensor:
        states = self.states(x, path)
        empty = torch.zeros_like(next(iter(states.values())))
        blocks = range(1, len(path.ops) + 1)
        out = torch.cat([states[k] if k in path.outputs else empty for k in blocks], dim=1)
        return self._input_projections[-1](x) + out if path.input_to_output else out

    def states(self, x: Tensor, path: Path) -> dict[int, Tensor]:
        """Run the used blocks."""
        projected = self.projected(x, [k for k in path.used if 0 in path.parents[k - 1]], path)
        states: dict[int, Tensor] = {}
        for block in path.used:
            terms = [states[p] if p else projected[block] for p in path.parents[block - 1]]
            total = sum(terms[1:], start=terms[0])
            states[block] = self._choice_blocks[block - 1].mixed_op.one(total, path.ops[block - 1])
        return states

    def projected(self, x: Tensor, blocks: list[int], path: Path) -> dict[int, Tensor]:
        return {block: self._input_projections[block - 1](x) for block in blocks}


class LeanCell(SinglePathCell):
    """As SinglePathCell, but channels that are always zero are left out.

    Where the input does not reach the output, a cell returns the selected blocks alone, and who
    reads them takes the weights of those channels. Projections of one input run one by one.
    """

    def forward(self, x: Tensor, path: Path) -> Tensor:
        states = self.states(x, path)
        if not path.input_to_output:
            return torch.cat([states[k] for k in path.outputs], dim=1)
        out = self._conv_bn_relu(x, [self._input_projections[-1]], path)
        channels = out.shape[1] // len(path.ops)
        for k in path.outputs:
            out[:, (k - 1) * channels : k * channels] += states[k]
        return out

    def projected(self, x: Tensor, blocks: list[int], path: Path) -> dict[int, Tensor]:
        units = {block: self._input_projections[block - 1] for block in blocks}
        return {block: self._conv_bn_relu(x, [unit], path) for block, unit in units.items()}

    def _conv_bn_relu(self, x: Tensor, units: Sequence[nn.Module], path: Path) -> Tensor:
        weight = torch.cat([unit.op[0].weight for unit in units])
        if not self.first:
            weight = self.selected(weight, path)
        scale, shift = (torch.cat([getattr(unit.op[1], name) for unit in units])
                        for name in ("weight", "bias"))  # fmt: skip
        y = F.conv2d(x, weight)
        return F.relu_(F.batch_norm(y, None, None, scale, shift, training=True))

    @staticmethod
    def selected(weight: Tensor, path: Path) -> Tensor:
        if path.input_to_output:
            return weight
        by_block = weight.unflatten(1, (len(path.ops), -1))
        return by_block[:, [k - 1 for k in path.outputs]].flatten(1, 2)


class FusedCell(LeanCell):
    """As LeanCell, with one convolution for the projections of all blocks."""

    def projected(self, x: Tensor, blocks: list[int], path: Path) -> dict[int, Tensor]:
        if not blocks:
            return {}
        units = [self._input_projections[block - 1] for block in blocks]
        parts = self._conv_bn_relu(x, units, path).chunk(len(blocks), dim=1)
        return dict(zip(blocks, parts, strict=True))


CELLS = {
    "published": PublishedCell, "single path": SinglePathCell, "lean": LeanCell, "fused": FusedCell,
}  # fmt: skip


class OneShot(nn.Module):
    """The one-shot model, batch norm with the statistics of the minibatch.

    Args:
        blocks: Choice blocks of a cell.
        way: How its cells run, one of CELLS.
        channels: Of the first stage.
        layers: Cells.
    """

    def __init__(
        self, blocks: int, way: str, *, channels: int = 16, layers: int = LAYERS, classes: int = 10
    ) -> None:
        super().__init__()
        self.stem = ConvBnRelu(3, channels, 3)
        self.cells = nn.ModuleList()
        self.pools = (layers // 3, 2 * layers // 3)
        inputs = width = channels
        for layer in range(layers):
            width *= 2 if layer in self.pools else 1
            self.cells.append(CELLS[way](blocks, inputs, width, first=not layer))
            inputs = width * blocks
        self.postprocess = nn.Module()
        convolution = nn.Conv2d(inputs, width, 1, bias=False)
        self.postprocess.op = nn.Sequential(
            nn.ReLU(), convolution, nn.BatchNorm2d(width, affine=False)
        )
        self.classifier = nn.Linear(width, classes)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take weights by the published names, and the statistics of the minibatch from now on."""
        self.load_state_dict(dict(state))
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean = module.running_var = None
        self.eval()

    def forward(self, x: Tensor, path: Path) -> Tensor:
        x = self.stem(x)
        for layer, cell in enumerate(self.cells):
            if layer in self.pools:
                x = F.max_pool2d(x, 2, stride=2, padding=1)
            x = cell(x, path)
        relu, convolution, norm = self.postprocess.op
        x = norm(F.conv2d(relu(x), self.cells[-1].selected(convolution.weight, path)))
        return self.classifier(x.mean(dim=(2, 3)))


class Scorer:
    """Losses of architectures by a one-shot model.

    Args:
        state: Weights by the published names.
        batch: Images and labels.
        way: How cells run, one of CELLS.
        bf16: Run under bfloat16 autocast; the weights of convolutions are then bfloat16 already,
            which spares autocast the cast of each at every use.
        channels_last: Layout of images and weights.
        dtype: Of weights and images.
        device: Where it runs; the way "single path" alone knows others than the CPU.
    """

    def __init__(
        self, state: Mapping[str, Tensor], batch: Batch, way: str, *, bf16: bool = False,
        channels_last: bool = False, dtype: torch.dtype = torch.float32, device: str = "cpu",
    ) -> None:  # fmt: skip
        self.bf16, self.labels, self.device = bf16, batch.labels.to(device), device
        layout = torch.channels_last if channels_last else torch.contiguous_format
        cells = {name.split(".")[1] for name in state if name.startswith("cells.")}
        blocks = {name.split(".")[3] for name in state if name.startswith("cells.0._choice_bl")}
        self.net = OneShot(
            len(blocks), way, channels=len(state["stem.op.0.weight"]), layers=len(cells),
            classes=len(state["classifier.bias"]),
        ).to(dtype)  # fmt: skip
        self.net.load(state)
        self.net.requires_grad_(False).to(device).to(memory_format=layout)
        if bf16:
            for module in self.net.modules():
                if isinstance(module, nn.Conv2d):
                    module.bfloat16()
        self.images = batch.images.to(device, dtype).contiguous(memory_format=layout)

    def __call__(self, arch: Architecture) -> Tensor:
        return self.losses(path_of(arch))

    def autocast(self) -> AbstractContextManager:
        return torch.autocast(self.device, torch.bfloat16, enabled=self.bf16)

    def losses(self, path: Path) -> Tensor:
        """Return the loss of each image."""
        with torch.no_grad(), self.autocast():
            logits = self.net(self.images, path)
            logits = logits.float() if self.bf16 else logits
            return F.cross_entropy(logits, self.labels, reduction="none")


def rivals_of(
    state: Mapping[str, Tensor], batch: Batch, precision: str, threads: int
) -> dict[str, Rival]:
    """Return every baseline of a precision, with one thread and with all, by name.

    In bfloat16 the float32 ones are among them: they may be faster.
    """
    networks: dict[str, Network] = {"published one-shot model": Scorer(state, batch, "published")}
    for bf16 in (False, True) if precision == "bf16" else (False,):
        for channels_last in (False, True):
            for way in ("single path", "lean", "fused"):
                name = "PyTorch bf16 autocast" if bf16 else "PyTorch fp32"
                name += " channels_last" if channels_last else " contiguous"
                name += "" if way == "single path" else f" {way}"
                networks[name] = Scorer(
                    state, batch, way, bf16=bf16, channels_last=channels_last
                )  # fmt: skip
    return with_threads(networks, threads)


# Arithmetic.


def macs(path: Path, way: str, *, channels: int, side: int, layers: int = LAYERS) -> int:
    """Multiply-accumulates of convolutions and classifier, of one image, by the shapes alone."""
    blocks = len(path.ops)
    everything, dense = way == "published", way in ("published", "single path")
    used = range(1, blocks + 1) if everything else path.used
    total = 27 * channels * side**2
    inputs = width = channels
    for layer in range(layers):
        if layer in (layers // 3, 2 * layers // 3):
            width, side = 2 * width, side // 2 + 1
        for k in used:
            if everything or 0 in path.parents[k - 1]:
                total += inputs * width * side**2
            kernels = {MAX_POOL: 0, CONV_3X3: 9, CONV_1X1: 1}
            area = sum(kernels.values()) if everything else kernels[path.ops[k - 1]]
            total += area * width**2 * side**2
        if everything or path.input_to_output:
            total += inputs * width * blocks * side**2
        inputs = width * (blocks if dense or path.input_to_output else len(path.outputs))
    return total + inputs * width * side**2 + 10 * width
