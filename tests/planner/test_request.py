"""Budgets in the units people write."""

import pytest

from memfit import forms
from planner.errors import BadBudget
from planner.plan import TECHNIQUES
from planner.request import Budget, PlanRequest, parse_budget


@pytest.mark.parametrize(
    ("text", "amount_bytes"),
    [(67108864, 67108864), ("67108864", 67108864), ("64 MiB", 67108864), ("64MiB", 67108864), ("1.5 GB", 1_500_000_000),
     ("1.5GiB", 1610612736),
     ("0.3 KiB", 308), ("2k", 2048), ("1_000", 1000), ("1e6", 1_000_000)],
)  # fmt: skip
def test_amounts(text: str | int, amount_bytes: int) -> None:
    assert parse_budget(text) == Budget(amount_bytes=amount_bytes)


def test_a_share_is_of_the_plain_peak() -> None:
    assert parse_budget(" 40 % ").in_bytes(1001) == 400


@pytest.mark.parametrize(
    "text", [0, -5, "0 MiB", "-1 GB", "12 parsecs", "", "MiB", "%", "1e999 GB", "1e99", "nan", "0x10", "64 MiB!", True]
)
def test_what_is_no_amount_is_refused_with_what_to_write(text: str | int) -> None:
    with pytest.raises(BadBudget, match=r"Give bytes \(67108864\)"):
        parse_budget(text)


def test_keeping_needs_no_leave() -> None:
    request = PlanRequest(Budget(amount_bytes=1), trainable=("layer1.*",), techniques=("hos*",))
    assert request.may_use("keep") and request.may_use("hosvd") and not request.may_use("svd")
    assert request.may_train("layer1.weight") and not request.may_train("layer2.weight")


def test_all_techniques_are_named() -> None:
    assert set(TECHNIQUES) >= {*forms.FORMS, "keep", "mask", "index", "recompute", "fold", "micro_batch", "early_update", "slices"}
    assert len(TECHNIQUES) == len(forms.FORMS) + 8
