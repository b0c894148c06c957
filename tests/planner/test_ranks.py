"""Ranks for given bytes against every choice of ranks, by errors of real projections."""

from itertools import pairwise, product
from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memfit.forms import Basis, Coded
from planner.coding import Coding, block_sizes
from planner.ranks import best_ranks
from planner.spectra import Spectra
from planner.techniques import basis_form, candidates, settings_of, shipped_tensors


def spectra_of(shape: tuple[int, ...], seed: int, feature: int = 1) -> tuple[Spectra, torch.Tensor]:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    for mode in range(1, len(shape)):  # energies that fall along every mode
        x = x * (0.6 ** torch.arange(shape[mode]).float()).view([-1 if m == mode else 1 for m in range(len(shape))])
    spectra = Spectra.of_shape(shape, 4, feature, (), 100.0)
    spectra.add(x)
    return spectra, x


@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple),
    seed=st.integers(0, 9),
    share=st.floats(0.05, 1.0),
    batch=st.integers(8, 16),
)
@settings(deadline=None, max_examples=30)
def test_no_ranks_of_as_many_elements_lose_less(shape: tuple[int, ...], seed: int, share: float, batch: int) -> None:
    spectra, x = spectra_of((batch, *shape), seed)
    most = int(share * x.numel())

    def elements(ranks: tuple[int, ...]) -> int:
        return batch * prod(ranks) + sum(n * r for n, r in zip(shape, ranks, strict=True) if r < n)

    def lost(ranks: tuple[int, ...]) -> float:
        used = [spectra.factors[m][:, :r].flatten() for m, (n, r) in enumerate(zip(shape, ranks, strict=True), start=1) if r < n]
        form = Basis(shape, ranks, torch.cat([torch.zeros(0), *used]))
        return float((form.restore(form.compress(x), x.shape, 0, batch) - x).square().sum() / x.square().sum())

    ours = spectra.ranks(most)
    fitting = [ranks for ranks in product(*(range(1, n + 1) for n in shape)) if elements(ranks) <= most]
    if ours is None:
        assert not fitting
    else:
        assert elements(ours) <= most
        assert lost(ours) <= min(lost(ranks) for ranks in fitting) + 1e-5


@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple),
    seed=st.integers(0, 9),
    share=st.floats(0.1, 1.0),
    nearly=st.floats(1.01, 3.0),
)
@settings(deadline=None, max_examples=50)
def test_ranks_that_lose_nearly_the_least_are_those_of_the_fewest_products(
    sizes: tuple[int, ...], seed: int, share: float, nearly: float
) -> None:
    energies = torch.rand(sizes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    most = int(share * 8 * prod(sizes))

    def lost(ranks: tuple[int, ...]) -> float:
        return float(energies.sum() - energies[tuple(slice(rank) for rank in ranks)].sum())

    def fits(ranks: tuple[int, ...]) -> bool:
        return 8 * prod(ranks) + sum(n * r for n, r in zip(sizes, ranks, strict=True) if r < n) <= most

    def products(ranks: tuple[int, ...]) -> float:
        modes = sorted((rank / size, rank) for size, rank in zip(sizes, ranks, strict=True) if rank < size)
        return sum(rank * prod(share for share, _ in modes[:at]) for at, (_, rank) in enumerate(modes))

    fitting = [ranks for ranks in product(*(range(1, n + 1) for n in sizes)) if fits(ranks)]
    ours = best_ranks(energies, (), 8, most, nearly=nearly)
    if ours is None:
        assert not fitting
    else:
        limit = nearly * min(map(lost, fitting))
        assert fits(ours) and lost(ours) <= limit + 1e-9
        assert products(ours) <= min(products(ranks) for ranks in fitting if lost(ranks) <= limit - 1e-9 or ranks == ours) + 1e-9


def test_a_mode_without_a_factor_is_kept_whole() -> None:
    energies = torch.rand(4, 5)
    ranks = best_ranks(energies, (1,), 2, 25)
    assert ranks is not None and ranks[1] == 5 and ranks[0] < 4
    assert best_ranks(energies, (0, 1), 2, 25) is None


@pytest.mark.parametrize("shape", [(32, 16, 16, 16), (32, 16, 48), (64, 96)])
def test_every_candidate_takes_at_most_the_bytes_it_tells(shape: tuple[int, ...]) -> None:
    spectra, x = spectra_of(shape, 0, 1 if len(shape) == 4 else len(shape) - 1)
    menu = candidates(spectra)
    assert {"coded", "int8", "bfloat16"} <= {candidate.form.technique for candidate in menu} or len(shape) == 2
    for candidate in menu:
        held = candidate.form.compress(x)
        assert sum(tensor.untyped_storage().nbytes() for tensor in held) <= candidate.held_bytes
        named = settings_of(candidate.form)
        texts = shipped_tensors([candidate.form])
        assert set(texts) == {value for value in named.values() if isinstance(value, str)}
        assert candidate.bytes < x.nbytes
    coded = [candidate for candidate in menu if candidate.form.technique == "coded"]
    price = spectra.coding.products_worth
    lost = [float((c.form.restore(c.form.compress(x), x.shape, 0, shape[0]) - x).square().sum()) for c in coded]
    costs = [energy * (1 + c.form.products / price) for energy, c in zip(lost, coded, strict=True) if isinstance(c.form, Coded)]
    assert len(costs) > 2 and all(after <= 1.2 * before for before, after in pairwise(costs)), "more bytes cost less"


def test_a_basis_counts_the_bytes_of_its_factors() -> None:
    spectra, x = spectra_of((16, 8, 8, 8), 1)
    for share in (10, 20, 40):
        form = basis_form(spectra, x.nbytes // share)
        assert form is not None
        assert form.held_bytes(tuple(x.shape), 4) + form.factors.nbytes <= x.nbytes // share


def test_blocks_divide_their_axes_and_leave_enough_of_them() -> None:
    for grid in ((112, 112), (56, 56), (14, 14), (7, 7), (13, 5), (197,), (64,), (4, 6, 8), ()):
        sizes = block_sizes(grid)
        assert sizes[0] == tuple(1 for _ in grid)
        for blocks in sizes:
            assert all(axis % block == 0 for axis, block in zip(grid, blocks, strict=True))
            assert prod(blocks) <= 64
    assert (4,) in block_sizes((64,)) and (16,) in block_sizes((64,))
    assert (8, 8) in block_sizes((112, 112)) and (2, 2) in block_sizes((14, 14)) and (7, 7) in block_sizes((7, 7))


def test_a_batch_too_small_to_learn_from_gives_no_basis() -> None:
    few, many = Coding((8, 64), 4, 1, (), 100.0), Coding((256, 64), 4, 1, (), 100.0)
    few.add(torch.randn(8, 64))
    many.add(torch.randn(256, 64))
    assert few.basis is None and many.basis is not None
    torch.testing.assert_close(many.basis @ many.basis.mT, torch.eye(64), rtol=0, atol=2e-3)


def test_a_value_that_is_all_zero_has_a_menu() -> None:
    spectra = Spectra.of_shape((8, 4, 8, 8), 4, 1, (), 100.0)
    spectra.add(torch.zeros(8, 4, 8, 8))
    for candidate in candidates(spectra):
        x = torch.zeros(8, 4, 8, 8)
        assert not candidate.form.restore(candidate.form.compress(x), x.shape, 0, 8).any()


def test_what_a_transform_may_cost_grows_with_the_work_of_the_holder() -> None:
    """Features that say much of one another, and little places: directions of the features lose less, and cost products."""
    numbers = torch.Generator().manual_seed(0)
    mixed, values = torch.randn(64, 64, generator=numbers), torch.randn(8, 64, 16, 16, generator=numbers)
    x = torch.einsum("fc,bchw->bfhw", mixed, values * torch.linspace(1.0, 0.05, 64)[:, None, None])
    products, errors = [], []
    for work in (0.0, 10.0, 1000.0):
        coding = Coding(tuple(x.shape), 4, 1, (), work)
        coding.add(x)
        form = coding.form(x.nbytes // 6)
        assert form is not None
        products.append(form.products)
        errors.append(float((form.restore(form.compress(x), x.shape, 0, 8) - x).norm()))
    assert products == sorted(products) and products[0] < products[-1]
    assert errors[-1] < errors[0]
