# SPDX-License-Identifier: MIT
"""The mixed operation proved: by hand, term by term, its gradients, and what rests."""

import pytest
import torch
from test_reference import tensor, unit

from nasfast.primitives import mix, normalise
from nasfast.reference_mixed import candidate, mixed_op, resting
from nasfast.spaces import NB201, OpKind, OpSpec

F64 = torch.float64
ZERO, SKIP, CONV1, CONV3, AVG = NB201.ops
MAX = OpSpec("max_pool_3x3", OpKind.MAX_POOL, 3)
ALL = (*NB201.ops, MAX, OpSpec("nor_conv_5x5", OpKind.CONV, 5))


def random_units(ops, channels=3, affine=False, seed=0):
    """Leaves that need a gradient, and nothing for operations without tensors."""
    generator = torch.Generator().manual_seed(seed)

    def leaf(*shape):
        return torch.randn(shape, dtype=F64, generator=generator).requires_grad_()

    return [
        unit(weight=leaf(channels, channels, op.kernel, op.kernel),
             **({"gamma": leaf(channels), "beta": leaf(channels)} if affine
                else {"bias": leaf(channels)}))
        if op.kind == OpKind.CONV else None
        for op in ops
    ]  # fmt: skip


def tensors_of(units):
    fields = ("weight", "bias", "gamma", "beta")
    found = [getattr(u, f) for u in units if u is not None for f in fields]
    return [t for t in found if t is not None]


def features(*shape, seed=1):
    return torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


# By hand: an image of 1, 3, 5, 7, whose mean is 4 and whose biased variance is 5.
SCALE = (5 + 1e-5) ** -0.5


@pytest.mark.parametrize(
    ("ops", "weights", "wanted"),
    [
        ((SKIP,), [2], [2, 6, 10, 14]),
        ((ZERO, SKIP), [9, 0.5], [0.5, 1.5, 2.5, 3.5]),
        ((ZERO, ZERO), [9, 9], [0, 0, 0, 0]),
        ((SKIP, AVG), [1, 1], [5, 7, 9, 11]),
        ((AVG, MAX, ZERO), [1, 10, 3], [74, 74, 74, 74]),
        # ReLU changes nothing; 1x1 by 3 cancels but for eps, which then is a ninth.
        ((CONV1, SKIP), [2, 1],
         [v + 2 * 3 * (v - 4) * (45 + 1e-5) ** -0.5 for v in (1, 3, 5, 7)]),
    ],
)  # fmt: skip
def test_by_hand(ops, weights, wanted):
    x = tensor([1, 3, 5, 7], 1, 1, 2, 2)
    units = [unit(weight=tensor([3], 1, 1, 1, 1)) if op == CONV1 else None for op in ops]
    got = mixed_op(x, ops, units, tensor(weights, len(ops)))
    torch.testing.assert_close(got, tensor(wanted, 1, 1, 2, 2))


def test_gradients_by_hand():
    x = tensor([1, 3, 5, 7], 1, 1, 2, 2).requires_grad_()
    weights = tensor([9, 2, 3], 3).requires_grad_()
    upstream = tensor([1, 0, 0, 2], 1, 1, 2, 2)
    (mixed_op(x, (ZERO, SKIP, AVG), [None] * 3, weights) * upstream).sum().backward()
    # Skip: 1 * 1 + 2 * 7. Mean of all four: 3 * 4.
    torch.testing.assert_close(weights.grad, tensor([0, 15, 12], 3))
    pooled = 3 * 3 / 4
    wanted = [2 + pooled, pooled, pooled, 4 + pooled]
    torch.testing.assert_close(x.grad, tensor(wanted, 1, 1, 2, 2))


def test_terms_are_added_left_to_right():
    x = torch.ones(1, 1, 1, 1)
    weights = torch.tensor([1e8, 1.0, -1e8])
    assert mixed_op(x, (SKIP,) * 3, [None] * 3, weights).item() == 0.0
    assert mixed_op(x, (SKIP,) * 3, [None] * 3, weights[[0, 2, 1]]).item() == 1.0
    assert mix([x, 2 * x], torch.tensor([3.0, 4.0])).item() == 11.0


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("modes", ["batch", "running"])
def test_it_is_the_sum_of_its_candidates(affine, modes):
    units = random_units(ALL, affine=affine)
    mean, variance = features(3, seed=3), features(3, seed=4).square() + 0.5

    def running(y, u):
        return normalise(y, mean, variance, u)

    options = (running,) if modes == "running" else ()
    x, weights = features(4, 3, 5, 6), features(len(ALL), seed=2)
    wanted = sum(
        weights[k] * candidate(x, ALL[k], units[k], *options) for k in range(1, len(ALL))
    )  # fmt: skip
    torch.testing.assert_close(
        mixed_op(x, ALL, units, weights, *options), wanted, rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("weights", [[0.3, -1.2, 0.7, 0.4, 1.1, -0.6, 0.2], [0, 1, 0, 0, 0, 0, 0]])
def test_gradients_in_float64(affine, weights):
    units = random_units(ALL, channels=2, affine=affine)
    x, mixing = features(2, 2, 4, 3).requires_grad_(), tensor(weights, len(ALL)).requires_grad_()

    def value(x, mixing, *_):
        return mixed_op(x, ALL, units, mixing)

    assert torch.autograd.gradcheck(value, (x, mixing, *tensors_of(units)), atol=1e-6)


def gradients(weights, ops=ALL, x=None):
    x = features(2, 3, 4, 4).requires_grad_() if x is None else x
    units = random_units(ops)
    mixed_op(x, ops, units, weights).square().sum().backward()
    return x, units


def test_an_operation_of_weight_0_rests_if_the_weights_need_no_gradient():
    x, units = gradients(tensor([0, 1, 0, 2, 0, 0, 0], 7))
    assert [u is not None and u.weight.grad is not None for u in units] == [
        False, False, False, True, False, False, False]  # fmt: skip
    assert units[2].bias.grad is None and x.grad is not None


def test_with_a_weight_of_0_that_needs_a_gradient_it_is_computed():
    weights = tensor([0, 1, 0, 0, 0, 0, 0], 7).requires_grad_()
    x, units = gradients(weights)
    assert units[2].weight.grad is not None and (units[2].weight.grad == 0).all()
    values = [candidate(x, ALL[k], units[k]) for k in range(1, 7)]
    wanted = [0.0, *(2 * (values[0] * value).sum().item() for value in values)]
    torch.testing.assert_close(weights.grad, tensor(wanted, 7))
    assert weights.grad[0] == 0 and weights.grad[1:].abs().min() > 1e-9


def test_without_gradients_nothing_needs_one():
    weights = tensor([0, 1, 0, 0, 0, 0, 0], 7).requires_grad_()
    assert not resting(weights).any()
    with torch.no_grad():
        assert resting(weights).tolist() == [k != 1 for k in range(7)]
    assert resting(weights.detach()).tolist() == [k != 1 for k in range(7)]


def test_zero_contributes_nothing_even_where_nothing_is_finite():
    x = tensor([1, float("inf"), float("nan"), 2], 1, 1, 2, 2).requires_grad_()
    weights = tensor([float("inf"), 2], 2).requires_grad_()
    y = mixed_op(x, (ZERO, SKIP), [None] * 2, weights)
    assert y[0, 0].flatten().tolist()[:2] == [2, float("inf")] and y[0, 0, 1, 1] == 4
    y.sum().backward()
    assert weights.grad[0] == 0 and weights.grad[1].isnan()


def test_zero_alone_leaves_its_weight_a_gradient_of_0():
    x, weights = features(1, 1, 2, 2).requires_grad_(), tensor([3], 1).requires_grad_()
    y = mixed_op(x, (ZERO,), [None], weights)
    assert (y == 0).all()
    y.sum().backward()
    assert weights.grad.tolist() == [0] and x.grad is None


def test_a_resting_operation_does_not_poison():
    units = random_units(ALL)
    with torch.no_grad():
        units[2].weight.fill_(float("nan"))
    y = mixed_op(features(1, 3, 4, 4), ALL, units, tensor([0, 1, 0, 1, 0, 0, 0], 7))
    assert y.isfinite().all()
