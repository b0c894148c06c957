"""Transform coding: errors as its steps say, right on average when dithered, and calm on awkward samples."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bench.allocator import step_peak_bytes
from memfit.forms import Coded
from memfit.forms import coded as coded_form
from memfit.quantisers import levels
from memfit.transform import BlockTransform
from planner.record import record
from tests.memfit.test_operators import coded, random

shapes = st.lists(st.integers(1, 7), min_size=2, max_size=5).map(tuple)
SHAPE = (6, 4, 8, 8)


def restored(form: Coded, x: Tensor) -> Tensor:
    return form.restore(form.compress(x), x.shape, 0, x.shape[0])


def flat_form(sample_bytes: int, **changes: object) -> Coded:
    """Every coefficient of `SHAPE` of the same deviation, so of the same width."""
    form = Coded(1, (4, 4), sample_bytes, 1.0, (), False, torch.zeros(4), None, torch.full((64,), 255, dtype=torch.uint8))
    return replace(form, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("width", [4, 6, 8, 12])
def test_a_coefficient_is_restored_to_what_is_nearest_in_its_width(width: int) -> None:
    torch.manual_seed(0)
    transform = BlockTransform(1, (4, 4))
    values = (torch.rand(6, 64, 4, dtype=torch.float64) * 2 - 1) * 3**0.5  # none beyond the quantiser's range
    x = transform.inverse(values.clone(), SHAPE, torch.zeros(4, dtype=torch.float64), None, torch.float64)
    gains = x.flatten(1).square().mean(1).sqrt()
    form = flat_form(256 * width // 8)
    again = transform.forward(restored(form, x), torch.zeros(4, dtype=torch.float64), None)
    relative, told = values / gains[:, None, None], again / gains[:, None, None]
    table = levels(width, False)
    torch.testing.assert_close((told[..., None] - table).abs().amin(-1), torch.zeros_like(told), rtol=0, atol=1e-9)  # one of its levels
    # A border is nearly half way between two levels.
    assert bool(((told - relative).abs() <= (relative[..., None] - table).abs().amin(-1) + 0.1 * table.diff().max()).all())


@given(data=st.data(), shape=shapes, seed=st.integers(0, 9))
@settings(deadline=None, max_examples=100)
def test_no_bytes_leave_the_mean_and_all_bytes_leave_little_error(data: st.DataObject, shape: tuple[int, ...], seed: int) -> None:
    form = replace(data.draw(coded(shape)), sample_bytes=0)
    x = random(shape, seed)
    mean = form.mean.double().view(-1, *[1] * (len(shape) - form.feature - 1))
    torch.testing.assert_close(restored(form, x), mean.expand(shape))
    if form.basis is None:
        fine = replace(form, sample_bytes=3 * x[0].numel() + 64, deviations=None)
        # 16 bits reach to 11 deviations of a position over the batch; no sample of these is further out.
        scale = float((x - mean).flatten(1).square().mean(1).sqrt().max())
        assert float((restored(fine, x) - x).abs().max()) <= 2e-2 * scale * max(1.0, float(x[0].numel()) ** 0.5)


def test_dithered_values_are_right_on_average_and_others_are_not() -> None:
    torch.manual_seed(0)
    x = (torch.rand(SHAPE, dtype=torch.float64) * 2 - 1) * 3**0.5
    draws = 400
    for dither in (True, False):
        form = flat_form(256 * 5 // 8, dither=dither)
        each = torch.stack([restored(form, x) for _ in range(draws)])
        single = float((each[0] - x).square().mean())
        bias = float((each.mean(0) - x).square().mean())
        assert bias <= 1.5 * single / draws if dither else bias == pytest.approx(single)
        if dither:
            torch.manual_seed(7)
            first = restored(form, x)
            torch.manual_seed(7)
            torch.testing.assert_close(restored(form, x), first, rtol=0, atol=0)


def test_adaptive_finds_its_own_table_within_the_same_bytes() -> None:
    """Energy where the shipped table expects none: static loses it, adaptive does not."""
    torch.manual_seed(0)
    x = torch.randn(SHAPE) * torch.tensor([1e-3, 1.0, 1e-3, 1e-3])[:, None, None]
    table = torch.full((4, 16), 40, dtype=torch.uint8)
    table[0] = 255
    static = flat_form(80, deviations=table.flatten())
    adaptive = flat_form(80, deviations=None)
    errors = [float((restored(form, x) - x).square().sum() / x.square().sum()) for form in (static, adaptive)]
    assert errors[0] > 0.9 and errors[1] < 0.15
    held = adaptive.compress(x)
    assert sum(tensor.nbytes for tensor in held) <= adaptive.held_bytes(SHAPE, 4) == 6 * (80 + 4) + 64 + 4


def test_bounds_bring_restored_values_nearer() -> None:
    torch.manual_seed(0)
    x = torch.randn(SHAPE).clamp_(0, 1)
    free, bound = restored(flat_form(64), x), restored(flat_form(64, bounds=(0.0, 1.0)), x)
    assert float(free.min()) < 0 < 1 < float(free.max())
    torch.testing.assert_close(bound, free.clamp(0, 1))
    assert float((bound - x).square().sum()) < float((free - x).square().sum())


@pytest.mark.parametrize("deviations", ["shipped", "own"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_sample_that_is_not_finite_is_restored_as_nan_and_others_are_not(value: float, deviations: str) -> None:
    form = flat_form(256) if deviations == "shipped" else flat_form(256, deviations=None)
    x = random(SHAPE, 0)
    x[2, 1, 3, 4] = value
    again = restored(form, x)
    assert bool(again[2].isnan().all()) and bool(again[[0, 1, 3, 4, 5]].isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-4, 1e4, 1e30])
@pytest.mark.parametrize("own", [True, False])
def test_finite_samples_stay_finite(dtype: torch.dtype, scale: float, own: bool) -> None:
    form = flat_form(256) if not own else flat_form(256, deviations=None)
    x = (random(SHAPE, 0) * scale).to(dtype)
    if bool(x.isfinite().all()):
        again = restored(form, x)
        assert again.dtype == dtype and bool(again.isfinite().all())
        small = float(torch.finfo(dtype).tiny) * 4
        assert float((again.double() - x.double()).norm()) <= 0.2 * float(x.double().norm()) + small * x.numel()


def test_the_gain_follows_the_sample() -> None:
    """A table is relative to each sample's energy: a batch ten times as loud loses ten times as much, and no more."""
    x = random(SHAPE, 0)
    form = flat_form(128)
    torch.testing.assert_close(restored(form, x * 10), 10 * restored(form, x))


def test_workspace_is_what_is_told() -> None:
    x = random((8, 32, 32, 32), 0).float()
    one_width = torch.full((512,), 255, dtype=torch.uint8)
    many = torch.arange(512).div(2, rounding_mode="floor").to(torch.uint8)
    basis = torch.linalg.qr(random((32, 32), 0))[0].half()
    tables: list[dict[str, object]] = [
        {"deviations": one_width},
        {"deviations": many},
        {"deviations": one_width, "dither": True, "sample_bytes": 32768 + 32768 // 4},
        {"deviations": many[:256], "basis": basis[:16]},
        {"deviations": many, "basis": basis, "sample_bytes": 60000},
        {"deviations": None},
    ]
    for table in tables:
        form = flat_form(8000, mean=torch.zeros(32))
        form = replace(form, **table)  # type: ignore[arg-type]
        held = form.compress(x)
        assert step_peak_bytes(lambda form=form: form.compress(x)) <= form.compress_bytes(tuple(x.shape), 4)  # type: ignore[misc]
        assert step_peak_bytes(lambda form=form, held=held: form.restore(held, x.shape, 0, 8)) <= form.restore_bytes(  # type: ignore[misc]
            tuple(x.shape), 4, 8
        )


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("directions", [None, 2])
def test_what_a_first_step_leaves_behind_is_what_its_tables_are_said_to_take(
    native: bool, directions: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not native:
        monkeypatch.setattr(coded_form, "library", lambda: None)
    basis = None if directions is None else torch.eye(4).half()[:directions].clone()
    deviations = torch.arange(100, 100 + 16 * (directions or 4), dtype=torch.uint8)
    form, x = replace(flat_form(150), mean=torch.zeros(4).half(), basis=basis, deviations=deviations), random(SHAPE, 0).float()
    left = record(lambda: restored(form, x), before=lambda: restored(form, x)).start_bytes
    assert left > deviations.nbytes and left == form.table_bytes(SHAPE, 4)
