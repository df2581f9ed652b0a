# SPDX-License-Identifier: MIT
"""An independent NAS-Bench-201 subnet, written straight down from the published definition.

Nothing of nasfast's lowering, program or reference is used: only tensor names.
"""

import torch
import torch.nn.functional as F


def batch_norm(x, tensors, name, mode):
    gamma, beta = tensors.get(f"{name}.weight"), tensors.get(f"{name}.bias")
    if mode == "running":
        mean, variance = tensors[f"{name}.running_mean"], tensors[f"{name}.running_var"]
    else:
        mean = x.mean(dim=(0, 2, 3))
        variance = ((x - mean.view(1, -1, 1, 1)) ** 2).mean(dim=(0, 2, 3))
    y = (x - mean.view(1, -1, 1, 1)) / torch.sqrt(variance.view(1, -1, 1, 1) + 1e-5)
    if gamma is not None:
        y = y * gamma.view(1, -1, 1, 1) + beta.view(1, -1, 1, 1)
    return y


def conv_bn(x, tensors, name, mode, *, stride=1):
    weight, bias = tensors[f"{name}.1.weight"], tensors.get(f"{name}.1.bias")
    y = F.conv2d(F.relu(x), weight, bias, stride=stride, padding=weight.shape[-1] // 2)
    return batch_norm(y, tensors, f"{name}.2", mode)


def operation(x, op, tensors, name, mode):
    if op == 0:
        return x * 0.0
    if op == 1:
        return x
    if op == 4:
        counts = F.conv2d(torch.ones_like(x[:1, :1]), torch.ones(1, 1, 3, 3).to(x), padding=1)
        kernel = torch.ones(x.shape[1], 1, 3, 3).to(x)
        return F.conv2d(x, kernel, padding=1, groups=x.shape[1]) / counts
    return conv_bn(x, tensors, f"{name}.{op}.op", mode)


def logits(
    tensors, archs, images, *, cells_per_stage, cells="batch", fixed="batch", owner=None,
    structural_zeros=None,
):  # fmt: skip
    """Archs: one tuple of six operation indices for each search cell, or mixing weights [6, 5].

    With ``structural_zeros`` an edge without an operation carries nothing, and neither does what
    depends on nothing else; a convolution of it does only where a shift is left (``"affine"``).
    """
    edges = [(0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)]
    owner = owner or (lambda i, j: f"edges.{j}<-{i}")
    x = F.conv2d(images, tensors["stem.0.weight"], padding=1)
    x = batch_norm(x, tensors, "stem.1", fixed)
    layer = 0
    archs = iter(archs)
    for stage in range(3):
        if stage:
            name = f"cells.{layer}"
            y = conv_bn(x, tensors, f"{name}.conv_a.op", fixed, stride=2)
            y = conv_bn(y, tensors, f"{name}.conv_b.op", fixed)
            pooled = (x[:, :, ::2, ::2] + x[:, :, 1::2, ::2] + x[:, :, ::2, 1::2]
                      + x[:, :, 1::2, 1::2]) / 4  # fmt: skip
            x = F.conv2d(pooled, tensors[f"{name}.downsample.1.weight"]) + y
            layer += 1
        for _ in range(cells_per_stage):
            ops = next(archs)
            nodes = [x, 0, 0, 0]
            for (i, j), op in zip(edges, ops, strict=True):
                name = f"cells.{layer}.{owner(i, j)}"
                source = nodes[i]
                if isinstance(op, torch.Tensor):
                    values = [operation(source, k, tensors, name, cells) for k in range(5)]
                    nodes[j] = nodes[j] + sum(op[k] * value for k, value in enumerate(values))
                    continue
                if structural_zeros and (op == 0 or isinstance(source, int)):
                    if op not in (2, 3) or structural_zeros == "plain":
                        continue
                    source = torch.zeros_like(x)
                nodes[j] = nodes[j] + operation(source, op, tensors, name, cells)
            x = torch.zeros_like(x) if isinstance(nodes[3], int) else nodes[3]
            layer += 1
    x = F.relu(batch_norm(x, tensors, "lastact.0", fixed)).mean(dim=(2, 3))
    return x @ tensors["classifier.weight"].T + tensors["classifier.bias"]
