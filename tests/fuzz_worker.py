"""A process that damages files and reads them; it may crash or hang without harm.

Each line of the input is a JSON list: a kind of file and a seed. The answer is what reading came
to. By hand: ``python tests/fuzz_worker.py KIND SEED``.
"""

import io
import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

import fuzz_files
import fuzz_pickles
import torch

from nasfast.runs import RunError
from nasfast.store import StoreError

MEMORY = 3 << 29  # 1.5 GiB more than the process has when it starts
# What only a pickle could have asked for. Base classes of ours never find a class.
FORBIDDEN = (
    "pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork",
    "subprocess.Popen", "pty.spawn", "socket.connect", "ctypes.dlopen", "shutil.rmtree",
)  # fmt: skip
# What the test that starts this process must notice.
TRIALS = {
    "crash": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "hang": lambda: any(iter(int, 1)),
    "memory": lambda: bytearray(2 * MEMORY),
    "run": lambda: os.system("true"),
}
heard: list[str] = []


def listen(event: str, _: object) -> None:
    if event in FORBIDDEN:
        heard.append(event)


def outcome(kind: str, seed: int, folder: Path) -> dict[str, object]:
    """Damage a file of a kind, read it, and say what happened."""
    if kind in TRIALS:
        name, read = kind, TRIALS[kind]
    else:
        case = fuzz_pickles.case if kind == "pickle" else fuzz_files.case
        name, read = case(kind, seed, folder)
    heard.clear()
    began = time.perf_counter()
    found, message = "read", ""
    try:
        read()
    except (ValueError, StoreError, RunError, OSError) as error:
        names = {ValueError: "ValueError", StoreError: "StoreError", RunError: "RunError"}
        found = next((names[k] for k in names if isinstance(error, k)), "OSError")
        message = str(error)
        if isinstance(error, OSError) and error.filename:  # as the command line says it
            message = f"{error.filename}: {error.strerror}"
        if type(error).__name__ == "UnicodeDecodeError":
            found = "UnicodeDecodeError"
    except BaseException as error:
        found, message = type(error).__name__, traceback.format_exc()
    return {
        "outcome": found, "message": message, "name": name, "heard": heard[:3],
        "seconds": time.perf_counter() - began,
    }  # fmt: skip


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if len(sys.argv) == 3:
            print(json.dumps(outcome(sys.argv[1], int(sys.argv[2]), Path(folder)), indent=1))
            return
        fuzz_files.originals(Path(folder))
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        sys.addaudithook(listen)
        answers = io.TextIOWrapper(sys.stdout.buffer, write_through=True)
        sys.stdout = sys.stderr  # whoever prints is not an answer
        print("ready", file=answers)
        for line in sys.stdin:
            kind, seed = json.loads(line)
            print(json.dumps(outcome(kind, seed, Path(folder))), file=answers)


if __name__ == "__main__":
    main()
