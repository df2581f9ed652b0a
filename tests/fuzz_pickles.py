"""Pickles that would run code, crash, hang or fill the memory, in every file that holds one.

Each payload is the value of an entry, or the whole pickle. None may leave the canary behind.
"""

import functools
import io
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import fuzz_files
import fuzz_mutations
import numpy as np

MANY = 200_000
CODE = "open({canary!r}, 'w').close()"
COMMAND = "touch {canary}"
CALLS = (  # what is called, with what
    ("os", "system", COMMAND),
    ("posix", "system", COMMAND),
    ("subprocess", "getoutput", COMMAND),
    ("builtins", "eval", CODE),
    ("builtins", "exec", CODE),
    ("__builtin__", "eval", CODE),
    ("numpy.testing._private.utils", "runstring", CODE),
    ("torch.utils.collect_env", "run", COMMAND),
    ("torch.hub", "load", COMMAND),
    ("timeit", "timeit", CODE),
    ("pydoc", "pipepager", COMMAND),
    ("code", "interact", CODE),
    ("pathlib", "Path.touch", "{canary}"),
    ("numpy", "load", "{canary}"),
    ("torch", "load", "{canary}"),
    ("torch.storage", "_load_from_bytes", "{canary}"),
)


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def tensor(storage: bytes, numbers: str) -> bytes:
    """A call of torch's own rebuilding with other arguments; ``numbers`` are opcodes."""
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + numbers.encode() + b"\x89NtR"


def storage(key: str, kind: str = "FloatStorage", size: int = 8) -> bytes:
    where = text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu")
    return b"(" + where + b"J" + struct.pack("<i", size) + b"tQ"


def array(state: bytes) -> bytes:
    """A NumPy array with a state of the pickle's choice."""
    made = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85C\x01btR"
    return made + state + b"b"


@functools.cache
def payloads(canary: Path) -> dict[str, bytes]:
    """Opcodes that leave one value on the stack, by name."""
    found = {}
    for module, name, argument in CALLS:
        call = text(argument.format(canary=str(canary)))
        label = f"{module}.{name}"
        found[f"reduce {label}"] = f"c{module}\n{name}\n".encode() + call + b"\x85R"
        if label not in ("os.system", "builtins.eval"):
            continue
        found[f"stack {label}"] = text(module) + text(name) + b"\x93" + call + b"\x85R"
        found[f"inst {label}"] = b"(" + call + f"i{module}\n{name}\n".encode()
        found[f"obj {label}"] = b"(" + f"c{module}\n{name}\n".encode() + call + b"o"
        found[f"newobj {label}"] = f"c{module}\n{name}\n".encode() + call + b"\x85\x81"
        found[f"newobj_ex {label}"] = f"c{module}\n{name}\n".encode() + call + b"\x85}\x92"
    call = text(COMMAND.format(canary=canary))
    deep = b"N" + b"\x85" * MANY
    twice = b"]" + b"(K\x01K\x02e" + b"q\x00h\x00\x86" + b"2\x86" * 60
    odd_type = b"cnumpy\ndtype\n" + text("u1") + b"\x85R"
    found |= {
        "persid": b"Pcos\nsystem\n\n",
        "binpersid": b"(" + text("storage") + b"cos\nsystem\n" + call + text("cpu") + b"K\x01tQ",
        "persid call": b"cos\nsystem\n" + call + b"\x85Q",
        "extension": b"\x82\x01",
        "extension 4": b"\x84\xff\xff\xff\x7f",
        "build dict": b"ccollections\nOrderedDict\n)R}" + text("__class__") + b"cos\nsystem\nsb",
        "build setstate": b"ccollections\nOrderedDict\n)R}" + text("__setstate__")
        + b"cos\nsystem\nsb" + call + b"b",
        "build slots": b"cnumpy\nndarray\nN}" + text("__call__") + b"cos\nsystem\ns\x86b",
        "build dtype": odd_type + b"(K\x03" + twice + b"NNNK\x00K\x00K\x00tb",
        "codecs": b"c_codecs\nencode\n" + call + text("unicode_escape") + b"\x86R",
        "codecs nested": b"c_codecs\nencode\n" + call + twice + b"\x86R",
        "out of band": b"\x97", "read only": b"N\x98",
        "deep tuples": deep, "deep lists": b"]" * MANY + b"a" * (MANY - 1),
        "deep key": b"}" + deep + b"K\x01s",
        "wide key": b"}" + twice + b"K\x01s",
        "deep set": b"\x8f(" + deep + b"\x90",
        "deep frozenset": b"(" + deep + b"\x91",
        "list of itself": b"]q\x01(h\x01h\x01e",
        "laughs": b"]" + b"q\x02" + b"0](h\x02h\x02eq\x02" * 60,
        "colliding keys": b"}(" + b"".join(
            b"\x8a\x0a" + (k * (2**61 - 1)).to_bytes(10, "little") + b"N" for k in range(40_000)
        ) + b"u",
        "colliding memo": b"N" + b"".join(b"p%d\n" % (k * (2**61 - 1)) for k in range(40_000)),
        "huge memo": b"Nr\xff\xff\xff\xff", "huge put": b"Np" + b"9" * 4000 + b"\n",
        "many digits": b"I" + b"9" * 5000 + b"\n", "many digits L": b"L" + b"9" * 10**6 + b"L\n",
        "huge number": b"\x8b" + struct.pack("<I", 10**6) + b"\x7f" * 10**6,
        "huge bytearray": b"\x96" + struct.pack("<Q", 1 << 44),
        "huge bytes": b"\x8e" + struct.pack("<Q", 1 << 62), "huge text": b"\x8d" + b"\xff" * 8,
        "huge frame": b"\x95" + struct.pack("<Q", 1 << 60),
        "squared": b"c_codecs\nencode\nq\x03" + text("x" * MANY) + text("latin1") + b"\x86q\x04R]"
        + b"(" + b"h\x03h\x04R" * 20_000 + b"e\x86",
        "squared call": text("x" * MANY) + b"q\x05]" + b"(" + b"cnumpy\ndtype\nh\x05R0N" * 5000
        + b"e\x86",
        "huge shape": array(
            b"(K\x01(" + b"J\xff\xff\xff\x7f" * 9000 + b"t" + odd_type + b"\x89C\x01xt"
        ),
        "shape of numbers": array(
            b"(K\x01(\x8b" + struct.pack("<I", 10**5) + b"\x7f" * 10**5 + b"q\x06"
            + b"h\x06" * 20_000 + b"t" + odd_type + b"\x89C\x01xt"
        ),
        "nested shape": array(b"(K\x01" + twice + odd_type + b"\x89C\x01xt"),
        "array of itself": array(b"(K\x01K\x01\x85" + odd_type + b"\x89]q\x07h\x07at"),
        "tensor without storage": tensor(b"N", "K\x00K\x01\x85K\x01\x85"),
        "tensor of nothing": b"ctorch._utils\n_rebuild_tensor_v2\n)R",
        "tensor beyond": tensor(storage("0"), "K\x07K\x09\x85K\x01\x85"),
        "tensor huge": tensor(storage("0"), "K\x00(" + "J\x7f\x7f\x7f\x7f" * 2 + "t(K\x00K\x00t"),
        "tensor negative": tensor(storage("0"), "I-5\nI3\n\x85I-1\n\x85"),
        "tensor of floats": tensor(storage("0"), "F0.5\nF3.0\n\x85F1.0\n\x85"),
        "tensor of objects": tensor(storage("0", "ObjectStorage"), "K\x00K\x01\x85K\x01\x85"),
        "storage elsewhere": tensor(storage("../data.pkl"), "K\x00K\x01\x85K\x01\x85"),
        "storage missing": tensor(storage("77"), "K\x00K\x01\x85K\x01\x85"),
        "nothing": b"", "only marks": b"((((", "empty stack": b"0000", "stop": b".",
    }  # fmt: skip
    return found


def whole(payload: bytes) -> bytes:
    return b"\x80\x04" + payload + b"."


def entry(names: tuple[str, ...], payload: bytes) -> bytes:
    return b"\x80\x04}(" + b"".join(text(name) + payload for name in names) + b"u."


def archive(pickled: bytes) -> bytes:
    members = [("x/data.pkl", pickled, 0), ("x/data/0", bytes(32), 0), ("x/version", b"3\n", 0)]
    return fuzz_mutations.zipped(members)


def stream(pickled: bytes) -> bytes:
    heads = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    found = [key for key in ("0", "77") if text("storage") in pickled and text(key) in pickled]
    keys = pickle.dumps(found) + (struct.pack("<q", 8) + bytes(32)) * len(found)
    return b"".join(pickle.dumps(head, 2) for head in heads) + pickled + keys


def objects(pickled: bytes) -> bytes:
    """A member of an npz file that is an array of objects."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        head, {"descr": "|O", "fortran_order": False, "shape": (15625,)}
    )
    member = b"\x93NUMPY\x01\x00" + head.getvalue().removeprefix(b"\x93NUMPY\x01\x00") + pickled
    names = ("x.npy", "images.npy", "labels.npy", "nasfast_table.npy")
    return fuzz_mutations.zipped([(name, member, zipfile.ZIP_STORED) for name in names])


CARRIERS: tuple[tuple[str, Callable[[bytes], bytes], tuple[str, ...]], ...] = (
    ("imagenet", lambda content: content, ("data", "labels")),
    ("checkpoint", archive, ("search_model",)),
    ("checkpoint", archive, ("stem.0.weight",)),
    ("old_checkpoint", stream, ("stem.0.weight",)),
)
# None of these is unpickled at all, so a few payloads are enough.
NEVER = (("truth", objects), ("images", objects), ("table", lambda content: content))


def canary_of(folder: Path) -> Path:
    return folder / "canary"


def case(_: str, seed: int, folder: Path) -> tuple[str, Callable[[], None]]:
    """Write a hostile file; return what a message must name, and what reads it."""
    found = payloads(canary_of(folder))
    carrier, number = divmod(seed // 2, len(found))
    payload = list(found.values())[number]
    if carrier < len(CARRIERS):
        name, wrap, names = CARRIERS[carrier]
    else:
        (name, wrap), names = NEVER[number % len(NEVER)], ("x",)
    kind = fuzz_files.KINDS[name]
    path = folder / name / kind.file
    fuzz_files.originals(folder)
    path.write_bytes(wrap(entry(names, payload) if seed % 2 else whole(payload)))

    def read() -> None:
        try:
            kind.read(path)
        finally:
            assert not canary_of(folder).exists(), "the canary was made"

    return path.parent.name if name == "imagenet" else kind.file, read


def count() -> int:
    """How many cases there are."""
    return 2 * len(payloads(Path("canary"))) * len(CARRIERS) + 2 * 9
