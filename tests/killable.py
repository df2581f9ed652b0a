"""A process that runs steps of runs in children, which may be killed at any moment.

What takes long to import is imported once, before the first child. Each line of the input is a JSON
list: the name of a step and a run folder. The answers are the child's process and, when it has
ended, its exit code.
"""

import json
import os
import sys
import traceback

import torch

from nasfast import evaluate, lane_backends
from nasfast.anytime import Goal
from nasfast.anytime_run import rank_until
from nasfast.finetune_run import finetune_run
from nasfast.runs import Run
from nasfast.steps import rank_run, train_run

STEPS = {
    "train": train_run,
    "rank": rank_run,
    "finetune": finetune_run,
    "until": lambda run: rank_until(run, Goal.parse("top-3")),
}


def child(step, folder):
    try:
        STEPS[step](Run.open(folder))
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def main():
    torch.set_num_threads(1)
    # Many transactions in little time.
    sys.modules["nasfast.evaluate"].MAX_CHUNK_LANES = 3
    sys.modules["nasfast.evaluate"]._MIN_CHUNK_LANES = 3
    sys.modules["nasfast.lane_backends"].MAX_CHUNK_LANES = 2
    for line in sys.stdin:
        step, folder = json.loads(line)
        process = os.fork()
        if process == 0:
            child(step, folder)
        print(process, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)


if __name__ == "__main__":
    assert evaluate and lane_backends
    main()
