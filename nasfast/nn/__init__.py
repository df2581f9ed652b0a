# SPDX-License-Identifier: MIT
"""Modules for other people's code."""

from __future__ import annotations

from nasfast.nn.mixed_op import MixedOp

__all__ = ["MixedOp"]
