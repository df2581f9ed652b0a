# SPDX-License-Identifier: MIT
"""``python -m nasfast`` is the command ``nasfast``."""

from nasfast.cli import main

if __name__ == "__main__":
    main()
