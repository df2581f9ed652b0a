# SPDX-License-Identifier: MIT
"""Adapters to other libraries, one file each; none of them is imported by nasfast itself."""
