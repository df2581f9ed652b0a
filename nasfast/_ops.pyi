# SPDX-License-Identifier: MIT
"""The torch operators of csrc/ops; importing the module registers them under torch.ops.nasfast."""
