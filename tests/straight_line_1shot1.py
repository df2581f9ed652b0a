# SPDX-License-Identifier: MIT
"""An independent NAS-Bench-1Shot1 subnet, written straight down from the published definition.

Nothing of nasfast is used: tensors have the names of the published one-shot model, and an
architecture is the operation of each block and the parents of each node after the input (node 0),
the output last. ``logits`` computes what the output depends on; ``published_logits`` runs every
operation and projection and multiplies by 0 and 1, as the published code does.
"""

import torch
import torch.nn.functional as F

NUM_PARENTS = {
    "nb1shot1-1": (1, 2, 2, 2, 2),
    "nb1shot1-2": (1, 1, 2, 2, 3),
    "nb1shot1-3": (1, 1, 1, 2, 2, 2),
}
MAX_POOL, CONV_3X3, CONV_1X1 = range(3)


def shapes(space_name, channels=16, layers=9, classes=10):
    """Return the shape of every tensor by name, without the counters of minibatches seen."""
    found = {}

    def conv_bn(name, inputs, outputs, kernel, first=0, affine=True):
        found[f"{name}.{first}.weight"] = (outputs, inputs, kernel, kernel)
        for field in (*(("weight", "bias") if affine else ()), "running_mean", "running_var"):
            found[f"{name}.{first + 1}.{field}"] = (outputs,)

    blocks = len(NUM_PARENTS[space_name]) - 1
    conv_bn("stem.op", 3, channels, 3)
    inputs = width = channels
    for layer in range(layers):
        if layer in (layers // 3, 2 * layers // 3):
            width *= 2
        for k in range(blocks):
            name = f"cells.{layer}._choice_blocks.{k}.mixed_op._ops"
            conv_bn(f"{name}.{CONV_3X3}.op.op", width, width, 3)
            conv_bn(f"{name}.{CONV_1X1}.op.op", width, width, 1)
            conv_bn(f"cells.{layer}._input_projections.{k}.op", inputs, width, 1)
        conv_bn(f"cells.{layer}._input_projections.{blocks}.op", inputs, width * blocks, 1)
        inputs = width * blocks
    conv_bn("postprocess.op", inputs, width, 1, first=1, affine=False)
    return found | {"classifier.weight": (classes, width), "classifier.bias": (classes,)}


def random_weights(space_name, *, channels, layers, seed, dtype=torch.float64):
    """Return tensors of the right size; scales, shifts and running statistics are random too."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, shape in shapes(space_name, channels, layers).items():
        if name.endswith("running_var") or (len(shape) == 1 and name.endswith("weight")):
            tensor = 0.5 + torch.rand(shape, generator=generator, dtype=torch.float64)
        else:
            tensor = torch.randn(shape, generator=generator, dtype=torch.float64)
            if len(shape) > 1:
                tensor *= (2 / tensor[0].numel()) ** 0.5
        found[name] = tensor.to(dtype)
    return found


def batch_norm(x, weights, name, mode):
    gamma, beta = weights.get(f"{name}.weight"), weights.get(f"{name}.bias")
    if mode == "running":
        mean, variance = weights[f"{name}.running_mean"], weights[f"{name}.running_var"]
    elif mode == "batch":
        mean = x.mean(dim=(0, 2, 3))
        variance = ((x - mean.view(1, -1, 1, 1)) ** 2).mean(dim=(0, 2, 3))
    else:
        raise ValueError(f"mode: wanted 'batch' or 'running', got {mode!r}")
    y = (x - mean.view(1, -1, 1, 1)) / torch.sqrt(variance.view(1, -1, 1, 1) + 1e-5)
    if gamma is not None:
        y = y * gamma.view(1, -1, 1, 1) + beta.view(1, -1, 1, 1)
    return y


def conv_bn_relu(x, weights, name, mode):
    weight = weights[f"{name}.0.weight"]
    y = F.conv2d(x, weight, padding=weight.shape[-1] // 2)
    return F.relu(batch_norm(y, weights, f"{name}.1", mode))


def max_pool(x, kernel, stride):
    """Return the largest of each window; what lies outside of the image is smaller than any."""
    padded = F.pad(x, (1, 1, 1, 1), value=-torch.inf)
    windows = padded.unfold(2, kernel, stride).unfold(3, kernel, stride)
    return windows.amax(dim=(4, 5))


def operation(x, op, weights, name, mode):
    if op == MAX_POOL:
        return max_pool(x, kernel=3, stride=1)
    return conv_bn_relu(x, weights, f"{name}.mixed_op._ops.{op}.op.op", mode)


def ancestors(parents):
    """Return the blocks that the output depends on."""
    found, todo = set(), [len(parents)]
    while todo:
        for parent in parents[todo.pop() - 1]:
            if parent and parent not in found:
                found.add(parent)
                todo.append(parent)
    return found


def network(weights, images, mode, channels, layers, cell):
    x = conv_bn_relu(images, weights, "stem.op", mode)
    for layer in range(layers):
        if layer in (layers // 3, 2 * layers // 3):
            x = max_pool(x, kernel=2, stride=2)
            channels *= 2
        x = cell(x, f"cells.{layer}", channels)
    x = F.conv2d(F.relu(x), weights["postprocess.op.1.weight"])
    x = batch_norm(x, weights, "postprocess.op.2", mode).mean(dim=(2, 3))
    return x @ weights["classifier.weight"].T + weights["classifier.bias"]


def check(space_name, ops, parents):
    wanted = NUM_PARENTS[space_name]
    assert len(ops) == len(wanted) - 1 and set(ops) <= {MAX_POOL, CONV_3X3, CONV_1X1}
    assert tuple(map(len, parents)) == wanted
    for node, given in enumerate(parents, start=1):
        assert sorted(set(given)) == list(given) and given[0] >= 0 and given[-1] < node


def logits(weights, space_name, ops, parents, images, mode="batch", *, channels=16, layers=9):
    """Logits of one architecture; nothing is computed that they do not depend on."""
    check(space_name, ops, parents)
    blocks, used = len(ops), ancestors(parents)
    to_output = parents[-1]

    def cell(x, name, width):
        states = {}
        for block in sorted(used):
            total = 0
            for parent in parents[block - 1]:
                if parent == 0:
                    project = f"{name}._input_projections.{block - 1}.op"
                    total = total + conv_bn_relu(x, weights, project, mode)
                else:
                    total = total + states[parent]
            choice = f"{name}._choice_blocks.{block - 1}"
            states[block] = operation(total, ops[block - 1], weights, choice, mode)
        empty = torch.zeros_like(x[:, :1]).expand(-1, width, -1, -1)
        parts = [states[k] if k in to_output else empty for k in range(1, blocks + 1)]
        out = torch.cat(parts, dim=1)
        if 0 in to_output:
            project = f"{name}._input_projections.{blocks}.op"
            out = conv_bn_relu(x, weights, project, mode) + out
        return out

    return network(weights, images, mode, channels, layers, cell)


def published_logits(
    weights, space_name, ops, parents, images, mode="batch", *, channels=16, layers=9
):
    """Logits of one architecture as the published model computes them.

    A node that has no choice of parents adds all nodes before it, unweighted.
    """
    check(space_name, ops, parents)
    blocks = len(ops)
    gamma = [float(node in parents[-1]) for node in range(blocks + 1)]

    def cell(x, name, width):
        states = []
        for block in range(1, blocks + 1):
            project = f"{name}._input_projections.{block - 1}.op"
            inputs = [conv_bn_relu(x, weights, project, mode), *states]
            if len(parents[block - 1]) < block:
                inputs = [(j in parents[block - 1]) * value for j, value in enumerate(inputs)]
            choice = f"{name}._choice_blocks.{block - 1}"
            states.append(
                sum(
                    (op == ops[block - 1]) * operation(sum(inputs), op, weights, choice, mode)
                    for op in (MAX_POOL, CONV_3X3, CONV_1X1)
                )
            )
        project = f"{name}._input_projections.{blocks}.op"
        projected = conv_bn_relu(x, weights, project, mode)
        weighted = [w * state for w, state in zip(gamma[1:], states, strict=True)]
        return gamma[0] * projected + torch.cat(weighted, dim=1)

    return network(weights, images, mode, channels, layers, cell)
