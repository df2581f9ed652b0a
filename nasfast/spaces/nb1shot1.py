# SPDX-License-Identifier: MIT
"""NAS-Bench-1Shot1: three search spaces whose every architecture is a cell of NAS-Bench-101.

Source: Zela, Siems and Hutter, NAS-Bench-1Shot1, ICLR 2020, section 3.
"""

from __future__ import annotations

from nasfast.spaces.block_spec import BlockSpec
from nasfast.spaces.nb101 import OP_SPECS

_CONV_3X3, _CONV_1X1, _MAX_POOL = OP_SPECS
_OPS = (_MAX_POOL, _CONV_3X3, _CONV_1X1)  # the order of the paper's own code

NB1SHOT1_1 = BlockSpec("nb1shot1-1", "NAS-Bench-1Shot1, search space 1", (1, 2, 2, 2, 2), _OPS)
NB1SHOT1_2 = BlockSpec("nb1shot1-2", "NAS-Bench-1Shot1, search space 2", (1, 1, 2, 2, 3), _OPS)
NB1SHOT1_3 = BlockSpec("nb1shot1-3", "NAS-Bench-1Shot1, search space 3", (1, 1, 1, 2, 2, 2), _OPS)
