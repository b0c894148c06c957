"""The C way of `coded` against its torch operations, which are the truth."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from memfit import native
from memfit.forms import Coded, Held, coded
from memfit.native import library
from memfit.positions import Positions
from memfit.quantisers import levels
from tests.memfit.test_operators import coded as coded_forms
from tests.memfit.test_operators import random

pytestmark = pytest.mark.skipif(library() is None, reason="memfit was installed without a compiler")
shapes = st.lists(st.integers(1, 9), min_size=2, max_size=5).map(tuple) | st.tuples(
    st.just(3), st.just(2), st.sampled_from([8, 16]), st.just(24)
)


def by_torch(form: Coded, x: Tensor) -> tuple[Held, Tensor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coded, "library", lambda: None)
        held = form.compress(x)
        return held, form.restore(held, x.shape, 0, x.shape[0])


def restored_by_torch(form: Coded, held: Held, shape: torch.Size) -> Tensor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coded, "library", lambda: None)
        return form.restore(held, shape, 0, shape[0])


def coefficients(form: Coded, held: Held, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """What the codes stand for, and the steps between those of each position that lie furthest apart."""
    assert form.deviations is not None
    positions = Positions(form.deviations, form.largest, form.transform.blocks_of(tuple(shape)), form.sample_bytes, form.dither)
    apart = [float(levels(width, form.dither).diff().max()) if width else 0.0 for width in positions.widths.tolist()]
    steps_P = positions.deviations(torch.float32) * torch.tensor(apart)
    return positions.unpack(held[0], held[1]), steps_P[:, None] * held[1][:, None, None]


@given(data=st.data(), shape=shapes, seed=st.integers(0, 9), power=st.integers(-12, 12))
@settings(deadline=None, max_examples=300)
def test_it_holds_and_restores_what_the_torch_operations_do(data: st.DataObject, shape: tuple[int, ...], seed: int, power: int) -> None:
    form = data.draw(coded_forms(shape))
    x = (random(shape, seed) * 10.0**power).float()
    ours, (theirs, truth) = form.compress(x), by_torch(form, x)
    assert [t.shape for t in ours] == [t.shape for t in theirs]
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-5, atol=0)
    size = float(truth.abs().max() + form.mean.abs().max() + x.abs().max())
    if form.deviations is not None:  # a coefficient on the border of two steps may fall to either side
        (one, steps), (other, _) = (coefficients(form, held, x.shape) for held in (ours, theirs))
        assert bool(((one - other).abs() <= 1.01 * steps + 1e-5 * size * form.transform.frequencies**0.5).all())
    restored = form.restore(ours, x.shape, 0, shape[0])
    # and either side is as near.
    assert float((restored - x).norm()) == pytest.approx(float((truth - x).norm()), rel=2e-3, abs=1e-5 * size * x.numel() ** 0.5)
    torch.testing.assert_close(restored, restored_by_torch(form, ours, x.shape), rtol=1e-4, atol=1e-5 * size)


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf"), 1e30, 1e-30])
def test_awkward_samples_stay_among_themselves(value: float) -> None:
    table = torch.full((4 * 16,), 255, dtype=torch.uint8)
    form = Coded(1, (4, 4), 200, 1.0, (), False, torch.zeros(4), None, table)
    x = random((3, 4, 8, 8), 0).float()
    x[1] = value
    held, (_, truth) = form.compress(x), by_torch(form, x)
    restored = form.restore(held, x.shape, 0, 3)
    torch.testing.assert_close(restored, truth, equal_nan=True, rtol=1e-4, atol=1e-4)
    assert restored[[0, 2]].isfinite().all() and (
        restored[1].isnan().all() if value != value or value > 1e38 else restored[1].isfinite().all()
    )


def test_dithered_values_are_restored_alike_and_bounds_are_kept() -> None:
    x = random((4, 6, 8, 8), 1).float().relu_()
    for dither in (True, False):
        table = torch.full((6 * 16,), 255, dtype=torch.uint8)
        form = Coded(1, (4, 4), 150, 1.0, (0.0, 1.0), dither, torch.full((6,), 0.4), None, table)
        held = form.compress(x)
        restored = form.restore(held, x.shape, 0, 4)
        torch.testing.assert_close(restored, restored_by_torch(form, held, x.shape), rtol=1e-5, atol=1e-5)
        assert float(restored.min()) >= 0 and float(restored.max()) <= 1


@pytest.mark.parametrize("block", [4, 8])
def test_threads_that_share_a_sample_restore_what_one_does(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    features, side = 40, 64
    table = torch.randint(150, 256, (features * block**2,), dtype=torch.uint8)
    form = Coded(1, (block, block), 20_000, 2.0, (0.0, 6.0), False, torch.full((features,), 0.4), None, table)
    x = random((3, features, side, side), 0).float()
    x[1, 3, 2, 1] = float("nan")
    held = form.compress(x)
    whole = form.restore(held, x.shape, 0, 3)  # one sample each by three threads
    for team in (2, 4):
        monkeypatch.setattr(native, "threads", lambda team=team: team)
        for sample in range(3):
            torch.testing.assert_close(
                form.restore(held, x.shape, sample, sample + 1), whole[sample : sample + 1], rtol=0, atol=0, equal_nan=True
            )
    assert whole[1].isnan().all() and whole[[0, 2]].isfinite().all()
