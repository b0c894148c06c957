"""A model that was written anew is the same model, and the archive of equal models is the same."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

from memfit.program import fingerprint, training_module
from service.intake.expressions import canonical_expression
from service.intake.rewrite import rewrite
from tests.planner import networks
from tests.service.intake.hostile import rewritten
from tests.service.small_model import export


class TwoInputs(nn.Module):
    """Gives a dict, computes with the batch size, and holds a constant and a buffer with infinity in it."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.register_buffer("mask", torch.full((3,), float("-inf")))
        self.constant = torch.arange(3.0)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> dict[str, torch.Tensor]:
        values, _ = torch.topk(left * self.scale + self.constant, 2)
        return {"loss": (left * right).mean(), "sum": left.reshape(left.shape[0] // 2, -1) + 1, "top": values, "mask": self.mask * 1}


def assert_same(before: Path, after: Path, *inputs: torch.Tensor) -> None:
    old, new = torch.export.load(before), torch.export.load(after)
    assert fingerprint(training_module(old, "frozen")) == fingerprint(training_module(new, "frozen"))
    assert old.state_dict.keys() == new.state_dict.keys()
    assert all(torch.equal(tensor, new.state_dict[name]) for name, tensor in old.state_dict.items())
    assert old.range_constraints == new.range_constraints
    wanted, got = old.module()(*inputs), new.module(check_guards=False)(*inputs)
    assert type(wanted) is type(got)
    for a, b in zip(torch.utils._pytree.tree_leaves(wanted), torch.utils._pytree.tree_leaves(got), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def test_models_stay_what_they_are(model_file: Path, tmp_path: Path) -> None:
    rewrite(model_file, tmp_path / "new.pt2")
    assert_same(model_file, tmp_path / "new.pt2", torch.randn(4, 3, 16, 16))
    two = export(TwoInputs(), torch.ones(4, 3), torch.ones(4, 3), to=tmp_path / "two.pt2")
    rewrite(two, tmp_path / "new.pt2")
    assert_same(two, tmp_path / "new.pt2", torch.randn(6, 3), torch.randn(6, 3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_other_dtypes_and_shared_ones_stay(dtype: torch.dtype, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)).to(dtype)
    net[1].weight = net[0].weight
    tied = export(net, torch.ones(2, 4, dtype=dtype), to=tmp_path / "tied.pt2")
    rewrite(tied, tmp_path / "new.pt2")
    assert_same(tied, tmp_path / "new.pt2", torch.randn(3, 4, dtype=dtype))


def test_equal_models_give_equal_archives_and_those_are_taken_again(model_file: Path, tmp_path: Path) -> None:
    rewrite(model_file, tmp_path / "first.pt2")
    rewrite(
        rewritten(model_file, tmp_path / "again.pt2", lambda entries: entries.update({"extra/note": b"hello"})), tmp_path / "second.pt2"
    )
    rewrite(tmp_path / "first.pt2", tmp_path / "third.pt2")
    assert (tmp_path / "first.pt2").read_bytes() == (tmp_path / "second.pt2").read_bytes() == (tmp_path / "third.pt2").read_bytes()


def test_where_operations_come_from_is_kept(model_file: Path, tmp_path: Path) -> None:
    rewrite(model_file, tmp_path / "new.pt2")
    trace = next(node.meta["stack_trace"] for node in torch.export.load(tmp_path / "new.pt2").graph.nodes if "stack_trace" in node.meta)
    assert 'small_model.py", line' in trace


@pytest.mark.parametrize(
    "expression",
    [
        "Symbol('s97', positive=True, integer=True)",
        "Mul(Integer(4), FloorDiv(Symbol('s97', positive=True, integer=True), Integer(2)))",
        "Add(Pow(Symbol('s1', integer=True), Integer(2)), Integer(-1))",
        "Max(Integer(1), Mod(Symbol('s1'), Integer(8)))",
        "Float('1.5', precision=53)",
    ],
)
def test_sizes_that_compute_are_kept(expression: str) -> None:
    assert canonical_expression(expression) == expression


def test_networks_of_the_planners_tests_are_taken(tmp_path: Path) -> None:
    assert importlib.util.find_spec("tests.planner.networks")
    known = (
        (networks.Convolutional(), networks.convolutional_sample()),
        (networks.Attending(), networks.attending_sample()),
        (networks.UNet(), networks.unet_sample()),
    )
    for model, sample in known:
        torch.export.save(networks.export(model, sample), tmp_path / "net.pt2")
        rewrite(tmp_path / "net.pt2", tmp_path / "new.pt2")
        old, new = (training_module(torch.export.load(tmp_path / name), "frozen") for name in ("net.pt2", "new.pt2"))
        assert fingerprint(old) == fingerprint(new)
