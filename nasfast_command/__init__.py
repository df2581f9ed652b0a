# SPDX-License-Identifier: MIT
"""The command ``nasfast``, from its first moment.

Outside the package, because to import anything of that imports PyTorch first, which takes seconds:
Ctrl-C in these would end in a traceback.
"""

import sys


def main() -> None:
    """Run the command line; an interrupt while it is loaded ends as one at work does."""
    try:
        from nasfast.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)
