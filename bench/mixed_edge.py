# SPDX-License-Identifier: MIT
"""One edge of DARTS-style code, nasfast.nn.MixedOp: there and back, on a card or a CPU.

The result and all gradients are checked against float64 before anything is timed. Beside ours runs
what a careful PyTorch user writes, launch by launch and, on a card, as CUDA graphs.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

import contract
from card_nb201 import peak_of
from eager_training import SEED, TRAINING_PASSES, gradient_error, variants, yardsticks
from environment import environment
from nasfast.nn import MixedOp
from nasfast.spaces import OpKind
from pairs import peak_memory_mib

SPACE, KERNELS = "nb201", (1, 3)  # kernels of its convolutions
SHAPES = [(64, 16, 32, 32), (64, 32, 16, 16), (64, 64, 8, 8)]  # an edge of each stage
FULL = {"repeats": 7, "rounds": 20}
QUICK = {"repeats": 2, "rounds": 2}
WORDS = (
    "forward and backward pass of one mixed operation of NAS-Bench-201 (zero, identity, 1x1 and "
    "3x3 ReLU-convolution-batch-norm, 3x3 average pool), batch statistics, affine, on random "
    f"features of {', '.join('x'.join(map(str, shape)) for shape in SHAPES)} in turn: result, "
    "gradients of the features, of the mixing weights and of all parameters; features and the "
    "gradient of the result are there already. FLOP: three times those of the convolutions, forward"
)

Found = dict[str, Tensor]  # result and gradients by name


def eager_mix(module: MixedOp, x: Tensor, weights: Tensor) -> Tensor:
    """Compute a mixed operation in plain PyTorch, with nothing that waits for the device."""
    terms = [
        weight * candidate(x)
        for weight, op, candidate in zip(weights.unbind(), module.ops, module._ops, strict=True)
        if op.kind != OpKind.ZERO
    ]
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


@dataclass(frozen=True)
class Edge:
    """A mixed operation with all that it is given.

    Attributes:
        backend: Of nasfast.nn.MixedOp, or "eager".
    """

    shape: tuple[int, ...]
    device: str
    backend: str
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    autocast: bool = False

    @cached_property
    def module(self) -> MixedOp:
        """The module, with the weights of every other of its shape."""
        torch.manual_seed(SEED)
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        backend = "reference" if self.backend == "eager" else self.backend
        module = MixedOp(self.shape[1], SPACE, affine=True, backend=backend)
        return module.to(self.device, self.dtype).to(memory_format=layout)

    @cached_property
    def given(self) -> tuple[Tensor, Tensor, Tensor]:
        """Features, mixing weights, and the gradient of the result."""
        generator = torch.Generator().manual_seed(SEED)
        x, gradient = (torch.randn(self.shape, generator=generator) for _ in range(2))
        x, gradient = x.bfloat16().to(self.dtype), gradient.bfloat16().to(self.dtype)
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        x, gradient = (t.to(self.device).contiguous(memory_format=layout) for t in (x, gradient))
        weights = torch.randn(len(self.module.ops), generator=generator).softmax(dim=0)
        return (
            x.requires_grad_(), weights.to(self.device, self.dtype).requires_grad_(), gradient
        )  # fmt: skip

    def run(self) -> Tensor:
        """Go there and back; return the result."""
        x, weights, gradient = self.given
        for leaf in (x, weights, *self.module.parameters()):
            leaf.grad = None
        with torch.autocast(self.device, torch.bfloat16, enabled=self.autocast):
            if self.backend == "eager":
                y = eager_mix(self.module, x, weights)
            else:
                y = self.module(x, weights)
        y.backward(gradient.to(y.dtype))
        return y

    def found(self) -> Found:
        """Return the result and all gradients, in float64."""
        y = self.run().detach()
        x, weights, _ = self.given
        grads = {name: p.grad for name, p in self.module.named_parameters()}
        found = {"y": y, "x": x.grad, "weights": weights.grad, **grads}
        return {name: t.double() for name, t in found.items() if t is not None}


def ours(shape: tuple[int, ...], options: argparse.Namespace) -> Edge:
    """Return ours; features lie as the result of the edge before does."""
    bf16 = options.precision == "bf16"
    return Edge(shape, options.device, options.device, channels_last=True, autocast=bf16)


def rivals_of(shape: tuple[int, ...], options: argparse.Namespace) -> dict[str, Edge]:
    """Return PyTorch's ways by name."""
    return {
        name: Edge(shape, options.device, "eager", channels_last=last, autocast=bf16)
        for name, bf16, last in variants(options.precision)
    }


def verify(options: argparse.Namespace) -> dict[str, Any]:
    """Check ours and the baselines on every shape; return the field ``max_error``."""
    mine, theirs = [], []
    for shape in SHAPES:
        truth = Edge(shape, options.device, "reference", torch.float64).found()
        own = ours(shape, options).found()
        again = ours(shape, options).found()
        if any(not torch.equal(own[name], again[name]) for name in own):
            raise SystemExit(f"ours: two runs of {shape} differ")
        errors = {name: error(e.found(), truth) for name, e in rivals_of(shape, options).items()}
        kind = "PyTorch bf16 autocast" if options.precision == "bf16" else "PyTorch fp32"
        layouts = (
            "channels_last" if last else "contiguous" for last in yardsticks(options.precision)
        )
        mine.append(error(own, truth))
        theirs.append(max(errors[f"{kind} {layout}"] for layout in layouts))
        for name, off in errors.items():
            if not off <= contract.LOSS_TOLERANCE["bf16" if "bf16" in name else "fp32"]:
                raise SystemExit(f"baseline {name}: {off:.3g} off: it computes something else")
    against = "result and all gradients in float64, relative, largest over shapes"
    return contract.check(mine, theirs, options.precision) | {"against": against}


def error(found: Found, truth: Found) -> float:
    """Return the largest relative error of the result, a gradient, or all those of parameters."""
    names = ("y", "x", "weights")
    parts = [{name: truth[name]} for name in names]
    parts.append({name: t for name, t in truth.items() if name not in names})
    return max(gradient_error(found, part) for part in parts)


def looped(
    edges: Sequence[Callable[[], object]], options: argparse.Namespace
) -> Callable[[], None]:
    """Return a run of all edges, in so many rounds."""

    def loop() -> None:
        for _ in range(options.rounds):
            for edge in edges:
                edge()
        if options.device == "cuda":
            torch.cuda.synchronize()

    loop()
    return loop


def recorded(edge: Edge) -> Callable[[], None]:
    """Record a CUDA graph of an edge, and see that it computes the same; return its replay."""
    expected, stream = edge.found(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # as torch wants it before it records
        for _ in range(3):
            edge.run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        edge.run()
    gradient = edge.given[0].grad  # written by every replay
    graph.replay()
    torch.cuda.synchronize()
    off = gradient_error({"x": gradient.double()}, {"x": expected["x"]})
    if not off <= 1e-2:
        raise SystemExit(f"baseline CUDA graph of {edge.shape}: {off:.3g} off")
    return graph.replay


def time_edges(options: argparse.Namespace) -> dict[str, Any]:
    """Time ours and PyTorch in pairs; seconds are for one edge of each shape."""
    names = list(rivals_of(SHAPES[0], options))
    edges = {name: [rivals_of(shape, options)[name] for shape in SHAPES] for name in names}
    rivals = {f"{name}, eager": looped([e.run for e in edges[name]], options) for name in names}
    if options.device == "cuda":
        rivals |= {
            f"{name}, CUDA graph": looped([recorded(e) for e in edges[name]], options)
            for name in names
        }
    mine = looped([ours(shape, options).run for shape in SHAPES], options)
    found = contract.time_rivals(
        mine, rivals, options.repeats, our_items=options.rounds, their_items=options.rounds
    )
    return {"seconds_are": "for one edge of each shape", **found}


def memory_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return most MiB of the largest shape beyond what it is given; on a CPU of the process."""
    if options.device == "cpu":
        return {"peak_mib": peak_memory_mib()}
    makers = {"ours": partial(ours, SHAPES[0], options)}
    makers |= {name: lambda e=edge: e for name, edge in rivals_of(SHAPES[0], options).items()}
    found = {}
    for name, make in makers.items():
        edge = make()
        edge.run()
        torch.cuda.synchronize()
        for leaf in (*edge.given, *edge.module.parameters()):
            leaf.grad = None
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        edge.run()
        torch.cuda.synchronize()
        found[name] = (torch.cuda.max_memory_allocated() - before) / 2**20
    return {"peak_mib": found["ours"], "memory": found}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Check, then time."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    max_error, memory = verify(options), memory_of(options)
    found, peak = time_edges(options), peak_of(options)
    macs = sum(b * h * w * c * c * k * k for b, c, h, w in SHAPES for k in KERNELS)
    flop = TRAINING_PASSES * 2 * macs
    gflops = 1e-9 * flop / found["ours_s"]
    return {
        "name": "mixed_edge",
        "device": options.device,
        "precision": options.precision,
        "quick": options.quick,
        "work": {"words": WORDS, "flop": flop},
        **found,
        **memory,
        "max_error": max_error,
        "gflops": gflops,
        "peak": peak,
        "share_of_peak": gflops / peak["gflops"],
        "environment": environment(options.threads, options.device),
    }


def publish(result: Mapping[str, Any], options: argparse.Namespace) -> None:
    """Write the JSON object, and print a short table."""
    contract.write(dict(result), options)
    memory = result.get("memory", {})
    times = {"ours": result["ours_s"], **result["baselines"]}
    print(f"{result['environment']['gpu'] or result['environment']['cpu']}, {result['precision']}:")
    for name, seconds in times.items():
        line = f"{name:<48} {seconds * 1e3:9.3f} ms  {seconds / result['ours_s']:5.2f} x ours"
        who, _, how = name.partition(", ")
        if who in memory and how != "CUDA graph":
            line += f"  {memory[who]:7.1f} MiB"
        print(line)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; --quick lowers what is not given."""
    parser = contract.parser(__doc__, devices=("cpu", "cuda"))
    parser.add_argument("--rounds", type=int, metavar="N", help="edges of each shape in a timing")
    return contract.parse(parser, arguments, FULL, QUICK, {})


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write one JSON object."""
    options = parse(arguments)
    publish(measure(options), options)


if __name__ == "__main__":
    contract.restart_with(parse().threads)
    main()
