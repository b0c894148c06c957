"""The block transform against the transforms written out: orthonormal, and each coefficient a sum over its block."""

from math import cos, pi, sqrt

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memfit.transform import BlockTransform
from tests.memfit.test_operators import coded, random

shapes = st.lists(st.integers(1, 6), min_size=2, max_size=5).map(tuple)


@given(data=st.data(), shape=shapes, seed=st.integers(0, 9))
@settings(deadline=None)
def test_it_keeps_energies_and_can_be_undone(data: st.DataObject, shape: tuple[int, ...], seed: int) -> None:
    transform = data.draw(coded(shape)).transform
    features = shape[transform.feature]
    x, mean = random(shape, seed), random((features,), seed + 1)
    basis = torch.linalg.qr(random((features, features), seed + 2))[0]
    for each in (None, basis):
        values = transform.forward(x, mean, each)
        assert values.shape == (shape[0], features * transform.frequencies, transform.blocks_of(shape))
        centred = x - mean.view(-1, *[1] * (len(shape) - transform.feature - 1))
        torch.testing.assert_close(values.square().sum((1, 2)), centred.flatten(1).square().sum(1))
        torch.testing.assert_close(transform.inverse(values.clone(), shape, mean, each, x.dtype), x)


def test_a_coefficient_is_what_its_definition_says() -> None:
    x, mean, basis = random((2, 3, 4, 6), 0), torch.zeros(3, dtype=torch.float64), torch.linalg.qr(random((3, 3), 1))[0]
    transform = BlockTransform(1, (2, 3))
    values = transform.forward(x, mean, basis).view(2, 3, 2, 3, 2, 2)
    sample, direction, u, v, down, across = 1, 2, 1, 2, 1, 0
    truth = 0.0
    for channel in range(3):
        for i in range(2):
            for j in range(3):
                waves = cos(pi * u * (2 * i + 1) / 4) * sqrt(2 / 2) * cos(pi * v * (2 * j + 1) / 6) * sqrt(2 / 3)
                truth += float(basis[direction, channel] * x[sample, channel, 2 * down + i, 3 * across + j]) * waves
    assert abs(float(values[sample, direction, u, v, down, across]) - truth) < 1e-12


def test_the_last_axis_may_hold_the_features() -> None:
    x = random((2, 4, 5), 3)
    transform = BlockTransform(2, (4,))
    torch.testing.assert_close(transform.forward(x, x.mean((0, 1)), None).view(2, 5, 4)[:, :, 0], 2 * (x - x.mean((0, 1))).mean(1))
