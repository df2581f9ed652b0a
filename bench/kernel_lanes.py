# SPDX-License-Identifier: MIT
"""One kernel of the CUDA engine on many lanes, in the memory of a device: see card_kernels.cpp."""

import ctypes
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.cpp_extension import include_paths, library_paths

from environment import REPOSITORY

SOURCE = Path(__file__).with_name("card_kernels.cpp")
PRECISIONS = ("fp32", "bf16", "tf32")  # as csrc/kernels/cuda/layout.h numbers them
OPERATIONS = ("sum", "convolution", "average pool", "maximum pool")  # these as card_kernels.cpp
KERNELS = ("forward", "norms", "input gradient", "weight gradient")
PLACES = ("term", "affine", "result", "reader gradient", "reader totals", "gradient")


@dataclass(frozen=True)
class Case:
    """One kernel, and the operation of every lane."""

    timed: str
    operation: str
    kernel: int
    channels: int
    side: int
    stride: int = 1
    terms: int = 2
    lanes: int = 256
    images: int = 64

    @property
    def out_channels(self) -> int:
        return self.channels * self.stride

    @property
    def out_side(self) -> int:
        return self.side // self.stride

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.images, self.side, self.side, self.channels)

    @property
    def out_shape(self) -> tuple[int, ...]:
        return (self.images, self.out_side, self.out_side, self.out_channels)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return (self.out_channels, self.channels, self.kernel, self.kernel)

    @property
    def name(self) -> str:
        operation = self.operation
        if operation != "sum":
            operation = f"{self.kernel}x{self.kernel} {operation}"
        what = "" if self.timed == "forward" else f", {self.timed}"
        sides = f"{self.channels} channels at {self.side}x{self.side}"
        return f"{operation}{' of stride 2' if self.stride == 2 else ''}{what}, {sides}"

    def flop(self) -> int:
        """Of products; what is added and compared beside them is not counted."""
        if self.operation != "convolution":
            return 0
        numbers = self.lanes * self.images * self.out_side**2 * self.out_channels
        return 2 * numbers * self.kernel**2 * self.channels

    def num_bytes(self, number: int) -> int:
        """Of values, each read or written once; ``number``: of a number."""
        value = number * self.lanes * self.images * self.side**2 * self.channels
        out = number * self.lanes * self.images * self.out_side**2 * self.out_channels
        # On the way back: the reader's gradient, and the result for its batch norm.
        return {
            "forward": self.terms * value + out,
            "input gradient": (self.terms + 1) * value + 2 * out,
            "weight gradient": self.terms * value + 2 * out,
        }[self.timed]


class Params(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int32)
        for name in ("precision", "operation", "kernel", "stride", "terms", "channels",
                     "out_channels", "images", "side", "lanes")
    ]  # fmt: skip


def engine_objects() -> list[Path]:
    """Return the object files that ``python setup.py build_ext`` has left, but for operators."""
    folders = ("engine", "kernels", "program")
    found = [
        path for name in folders for path in REPOSITORY.glob(f"build/temp*/csrc/{name}/**/*.o")
    ]
    if not any(path.stem == "passes" for path in found):
        raise SystemExit("build/: wanted object files with CUDA kernels: WITH_CUDA=1 python "
                         "setup.py build_ext --inplace")  # fmt: skip
    return sorted(found)


def link(objects: Sequence[Path], includes: Sequence[Path], flags: Sequence[str]) -> ctypes.CDLL:
    """Compile card_kernels.cpp against the engine; load it."""
    out = REPOSITORY / "build" / "card_kernels.so"
    command = [os.environ.get("CXX", "g++"), "-std=c++20", "-O2", "-shared", "-fPIC"]
    command += ["-fvisibility=hidden", *(f"-I{path}" for path in (*includes, REPOSITORY / "csrc"))]
    command += [str(SOURCE), *map(str, objects), *flags, "-pthread", "-o", str(out)]
    subprocess.run(command, check=True)
    library = ctypes.CDLL(str(out))
    for name in ("new", "bind", "run"):
        getattr(library, f"case_{name}").restype = ctypes.c_char_p
    for name in ("bytes", "place"):
        getattr(library, f"case_{name}").restype = ctypes.c_int64
    return library


def cuda_library() -> ctypes.CDLL:
    """Link with the CUDA that the object files were compiled and are linked with."""
    folders = [f"-L{path}" for path in library_paths("cuda")]
    return link(engine_objects(), [Path(p) for p in include_paths("cuda")], [*folders, "-lcudart"])


class Lanes:
    """A case in the memory of a device, with random numbers in it."""

    def __init__(self, library: ctypes.CDLL, case: Case, precision: str, device: str) -> None:
        self.library, self.case, self.precision, self.device = library, case, precision, device
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        params = Params(
            PRECISIONS.index(precision), OPERATIONS.index(case.operation), case.kernel, case.stride,
            case.terms, case.channels, case.out_channels, case.images, case.side, case.lanes,
        )  # fmt: skip
        self.handle = ctypes.c_void_p()
        self._checked(library.case_new(ctypes.byref(params), ctypes.byref(self.handle)))
        size = library.case_bytes(self.handle)
        # Zeros: statistics of what the terms were normalised with, that sums are about.
        self.memory = torch.zeros(size + 256, dtype=torch.uint8, device=device)
        self.memory = self.memory[-self.memory.data_ptr() % 256 :]
        generator = torch.Generator(device).manual_seed(0)
        self.weights = torch.randn(
            (case.lanes, *case.weight_shape), generator=generator, device=device
        )
        self.weights *= (case.kernel**2 * case.channels) ** -0.5
        self.weight_gradients = torch.zeros_like(self.weights)
        for lane in range(case.lanes):
            for term in range(case.terms):
                self.value("term", lane, term).normal_(generator=generator)
                self.affine(lane, term)[0].uniform_(0.5, 1.5, generator=generator)
                self.affine(lane, term)[1].normal_(generator=generator)
            self.value("reader gradient", lane).normal_(generator=generator)
        self._checked(
            library.case_bind(
                self.handle, ctypes.c_void_p(self.memory.data_ptr()),
                ctypes.c_void_p(self.weights.data_ptr()),
                ctypes.c_void_p(self.weight_gradients.data_ptr()), self._stream(),
            )
        )  # fmt: skip

    def close(self) -> None:
        self.library.case_delete(self.handle)

    def run(self, kernel: str) -> None:
        """Launch it on all lanes."""
        number = KERNELS.index(kernel)
        self._checked(self.library.case_run(self.handle, number, self._stream()))

    def value(self, what: str, lane: int, index: int = 0) -> Tensor:
        """Return [images, height, width, channels] of the device's memory."""
        shape = self.case.shape if what in ("term", "gradient") else self.case.out_shape
        return self._at(what, lane, index, self.dtype, shape)

    def affine(self, lane: int, term: int) -> Tensor:
        """Return scale and shift, [2, channels]."""
        return self._at("affine", lane, term, torch.float32, (2, self.case.channels))

    def totals(self, lane: int) -> Tensor:
        """Return [2, channels]: sums of the reader's gradient g, and of g * (result - mean)."""
        return self._at("reader totals", lane, 0, torch.float64, (2, self.case.out_channels))

    def _at(
        self, what: str, lane: int, index: int, dtype: torch.dtype, shape: Sequence[int]
    ) -> Tensor:
        begin = self.library.case_place(self.handle, PLACES.index(what), lane, index)
        size = torch.Size(shape).numel() * dtype.itemsize
        return self.memory[begin : begin + size].view(dtype).view(shape)

    def _stream(self) -> ctypes.c_void_p:
        is_cuda = self.device == "cuda"
        return ctypes.c_void_p(torch.cuda.current_stream().cuda_stream if is_cuda else None)

    def _checked(self, message: bytes | None) -> None:
        if message is not None:
            raise SystemExit(f"{self.case.name}, {self.precision}: {message.decode()}")


@contextmanager
def lanes_of(library: ctypes.CDLL, case: Case, precision: str, device: str) -> Iterator[Lanes]:
    lanes = Lanes(library, case, precision, device)
    try:
        yield lanes
    finally:
        lanes.close()
