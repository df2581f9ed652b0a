"""Damage to files, drawn from a seed: of bytes anywhere, and of what their formats are made of."""

import gzip
import io
import json
import random
import re
import sqlite3
import struct
import tarfile
import tempfile
import zipfile
import zlib
from pathlib import Path

EXTREMES = (0, 1, 2, 127, 128, 255, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1)
VALUES = (
    None, True, False, 0, 1, -1, 3, 2**31, 2**62, 10**400, 0.5, -1e308, "", "x", "fp64", "nb201",
    "F64", "I32", "BF16", "F8_E4M3", "U8", "BOOL", [], [0], [1, 2], [2**62, 2**62], [-1], {},
    {"x": 1}, [[]],
)  # fmt: skip


def damaged(content: bytes, draw: random.Random) -> bytes:
    """Damage bytes that may be anything."""
    raw = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        draw.choice(_BYTES)(raw, draw)
    return bytes(raw)


def _place(raw: bytearray, draw: random.Random) -> int:
    """A place in the file; those that say what the rest is lie at its ends."""
    near = draw.randrange(min(len(raw), 600) or 1)
    return draw.choice((near, len(raw) - 1 - near, draw.randrange(len(raw) or 1)))


def _flip(raw: bytearray, draw: random.Random) -> None:
    if raw:
        raw[_place(raw, draw)] ^= 1 << draw.randrange(8)


def _run(raw: bytearray, draw: random.Random) -> None:
    place, count = _place(raw, draw), draw.choice((1, 2, 4, 8, 40))
    fill = draw.choice((b"\0" * count, b"\xff" * count, draw.randbytes(count)))
    raw[place : place + count] = fill[: len(raw) - place]


def _number(raw: bytearray, draw: random.Random) -> None:
    place, size = _place(raw, draw), draw.choice((1, 2, 4, 8))
    number = draw.choice(EXTREMES) & (256**size - 1)
    order = draw.choice(("little", "big"))
    raw[place : place + size] = number.to_bytes(size, order)[: max(0, len(raw) - place)]


def _cut(raw: bytearray, draw: random.Random) -> None:
    del raw[_place(raw, draw) :]


def _insert(raw: bytearray, draw: random.Random) -> None:
    place = _place(raw, draw)
    raw[place:place] = draw.randbytes(draw.choice((1, 2, 9, 300)))


def _delete(raw: bytearray, draw: random.Random) -> None:
    place = _place(raw, draw)
    del raw[place : place + draw.choice((1, 2, 9, 300))]


def _repeat(raw: bytearray, draw: random.Random) -> None:
    start, place = _place(raw, draw), _place(raw, draw)
    raw[place:place] = raw[start : start + draw.choice((4, 64, 2000))]


def _digits(raw: bytearray, draw: random.Random) -> None:
    found = list(re.finditer(rb"\d+", bytes(raw[:4000]))) or [None]
    match = draw.choice(found)
    if match:
        new = str(draw.choice((0, 9, 99, 10**9, 10**18))).encode()
        raw[match.start() : match.end()] = new[: draw.choice((len(match[0]), 99))]


_BYTES = (_flip, _flip, _run, _number, _number, _cut, _insert, _delete, _repeat, _digits)


def changed_value(value: object, draw: random.Random) -> object:
    """Change one place of nested plain values."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(list(value))
        how = draw.randrange(8)
        rest = {k: v for k, v in value.items() if k != key}
        if how == 0:
            return rest
        if how == 1:
            return rest | {draw.choice(("", "x", key + "x", key[:-1])): value[key]}
        return value | {key: changed_value(value[key], draw)}
    if isinstance(value, list) and value and draw.random() < 0.8:
        place = draw.randrange(len(value))
        return [*value[:place], changed_value(value[place], draw), *value[place + 1 :]]
    if isinstance(value, str) and draw.random() < 0.5:
        try:  # JSON in JSON
            inner = json.loads(value)
        except ValueError:
            inner = None
        if isinstance(inner, dict | list):
            return json.dumps(changed_value(inner, draw))
    return draw.choice(VALUES)


def safetensors(content: bytes, draw: random.Random) -> bytes:
    """Change the header of a safetensors file; its length stays right."""
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    part = draw.choice((header, header, header.get("__metadata__", header)))
    if part is header:
        header = changed_value(header, draw)
    else:
        header = header | {"__metadata__": changed_value(part, draw)}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + size :]


def archive_members(content: bytes) -> list[tuple[zipfile.ZipInfo, bytes]]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return [(info, archive.read(info)) for info in archive.infolist()]


def zipped(members: list[tuple[str, bytes, int]]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content, kind in members:
            archive.writestr(zipfile.ZipInfo(name), content, kind)
    return buffer.getvalue()


def zip_file(content: bytes, draw: random.Random) -> bytes:
    """Change a member of a zip archive; checksums fit."""
    members = [(i.filename, data, i.compress_type) for i, data in archive_members(content)]
    small = [k for k, m in enumerate(members) if m[0].endswith(".pkl") or "/" not in m[0]]
    place = draw.choice(small or [0]) if draw.random() < 0.8 else draw.randrange(len(members))
    name, data, kind = members[place]
    how = draw.randrange(10)
    if how == 0:
        del members[place]
    elif how == 1:
        members[place] = (draw.choice(("x", name + "x", "../" + name, "")) or "y", data, kind)
    elif how == 2:
        members[place] = (name, data, draw.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA)))
    elif how < 6 and data[:6] == b"\x93NUMPY":
        members[place] = (name, npy_header(data, draw), kind)
    else:
        members[place] = (name, damaged(data, draw), kind)
    return zipped(members)


def npy_header(data: bytes, draw: random.Random) -> bytes:
    """Change what the header of a NumPy array says."""
    (size,) = struct.unpack("<H", data[8:10])
    header = eval(data[10 : 10 + size], {"__builtins__": {}})  # of an array that we wrote
    key = draw.choice(("descr", "shape", "shape", "fortran_order"))
    header[key] = {
        "descr": ("|u1", "<f8", "<i8", ">i4", "|O", "|S9", "<U3", "|V5", "|S0", "<M8[s]", "c8",
                  [("a", "<i4")], 3, "<f2"),
        "shape": ((), (0,), (1,), (2**40,), (2**62, 2), (-1,), (3, 5), (1,) * 40, "x", (0, 2**62)),
        "fortran_order": (True, False, 3),
    }[key][draw.randrange({"descr": 14, "shape": 10, "fortran_order": 3}[key])]  # fmt: skip
    text = repr(header).encode().ljust(size)
    return data[:8] + struct.pack("<H", len(text)) + text + data[10 + size :]


def tar_file(content: bytes, draw: random.Random) -> bytes:
    """Change a member or a header of a tar archive, with fitting checksums; gzip as before."""
    packed = content[:2] == b"\x1f\x8b"
    raw = bytearray(gzip.decompress(content) if packed else content)
    if draw.random() < 0.5:
        members = []
        with tarfile.open(fileobj=io.BytesIO(bytes(raw))) as archive:
            for info in archive:
                members.append((info, archive.extractfile(info).read()))
        place = draw.randrange(len(members))
        members[place] = (members[place][0], damaged(members[place][1], draw))
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for info, data in members:
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        raw = bytearray(buffer.getvalue())
    else:
        heads = [k for k in range(0, len(raw), 512) if raw[k + 257 : k + 262] == b"ustar"]
        head = draw.choice(heads)
        start, end = draw.choice(((0, 100), (124, 136), (124, 136), (156, 157), (157, 257)))
        size = end - start
        new = draw.choice((
            b"\xff" * size, b"\x80" + bytes(max(0, size - 2)) + b"\x09", b"-1", b"77777777777",
            b"00000000000", b"../x", b"/x", b"L", b"x", b"g", b"S", b"2", b"5", b"K",
            bytes([draw.randrange(256)]),
        ))  # fmt: skip
        raw[head + start : head + end] = new[:size].ljust(size, b"\0")
        raw[head + 148 : head + 156] = b" " * 8
        raw[head + 148 : head + 156] = b"%06o\0 " % sum(raw[head : head + 512])
    return gzip.compress(bytes(raw), 1) if packed else bytes(raw)


def sqlite_file(content: bytes, draw: random.Random) -> bytes:
    """Change rows, settings or the schema of an SQLite file by SQL."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "f"
        path.write_bytes(content)
        db = sqlite3.connect(path, isolation_level=None)
        table = db.execute("SELECT name FROM sqlite_schema WHERE name != 'meta'").fetchone()[0]
        columns = [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
        value = draw.choice(("x", "", b"", b"123", -1, 2**62, 1.5, "[" * 5000, "[1]", "{}", "null"))
        endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT "
        endless += ", ".join(f"i AS {name}" for name in columns) + " FROM n"
        statement, values = draw.choice((
            (f"UPDATE {table} SET {draw.choice(columns[1:])} = ? WHERE rowid_of = 0", (value,)),
            ("UPDATE meta SET value = ? WHERE key = 'settings'", (value,)),
            ("UPDATE meta SET value = ? WHERE key = 'schema'", (value,)),
            ("INSERT OR REPLACE INTO meta VALUES ('origins', ?)", (value,)),
            ("INSERT OR REPLACE INTO meta VALUES ('work', ?)", (value,)),
            ("DELETE FROM meta WHERE key = ?", (draw.choice(("settings", "schema")),)),
            (f"ALTER TABLE {table} RENAME TO other; CREATE VIEW {table} AS {endless}", ()),
            (f"CREATE TRIGGER t AFTER INSERT ON meta BEGIN DELETE FROM {table}; END", ()),
            (f"ALTER TABLE {table} RENAME COLUMN {draw.choice(columns)} TO other", ()),
            (f"DROP TABLE {draw.choice((table, 'meta'))}", ()),
        ))  # fmt: skip
        statement = statement.replace("rowid_of", f"(SELECT count(*) FROM {table} o WHERE o.arch < "
                                                  f"{table}.arch)")  # fmt: skip
        if values:
            db.execute(statement, values)
        else:
            db.executescript(statement)
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        db.execute("PRAGMA journal_mode=DELETE")
        db.close()
        return path.read_bytes()


def journal(content: bytes, draw: random.Random) -> bytes:
    """Change a line of a journal; its checksum fits."""
    lines = content.split(b"\n")
    place = draw.randrange(len(lines) - 1)
    value = changed_value(json.loads(lines[place].partition(b" ")[2]), draw)
    text = draw.choice((json.dumps(value).encode(), b"[" * 5000, b"3", b"{"))
    lines[place] = f"{zlib.crc32(text):08x} ".encode() + text
    return b"\n".join(lines)


def bits(content: bytes, draw: random.Random) -> bytes:
    """Change the header of a file of bits; its checksum fits."""
    head = bytearray(content[:48])
    struct.pack_into("<Q", head, draw.choice((32, 40)), draw.choice(EXTREMES))
    return bytes(head) + struct.pack("<I", zlib.crc32(head)) + content[52:]


def plain(content: bytes, draw: random.Random) -> bytes:
    """For formats with no structure but bytes."""
    return damaged(content, draw)
