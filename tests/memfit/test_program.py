"""Programs as modules: called however they were exported, tied as they were."""

import pytest
import torch
from torch import Tensor, nn

from memfit.losses import loss_of
from memfit.program import call_with, training_module


class Affine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.same = nn.Linear(3, 3)
        self.same.weight = self.layer.weight

    def forward(self, x: Tensor, *, scale: Tensor) -> Tensor:
        result: Tensor = self.same(self.layer(x)) * scale
        return result


def test_inputs_go_in_by_place_or_by_name() -> None:
    model, x, scale = Affine(), torch.randn(2, 3), torch.tensor(2.0)
    module = training_module(torch.export.export(model, (x,), {"scale": scale}), "frozen")
    truth = model(x, scale=scale)
    torch.testing.assert_close(call_with(module, (x, scale)), truth)
    torch.testing.assert_close(call_with(module, {"scale": scale, "x": x}), truth)
    with pytest.raises(KeyError):
        call_with(module, {"x": x})


def test_tied_parameters_are_one_after_loading(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("tied") / "net.pt2"
    torch.export.save(torch.export.export(Affine(), (torch.randn(2, 3),), {"scale": torch.tensor(2.0)}), path)
    module = training_module(torch.export.load(path), "frozen")
    assert module.get_parameter("layer.weight") is module.get_parameter("same.weight")


def test_freezing_a_module_leaves_its_program_alone() -> None:
    program = torch.export.export(nn.Linear(3, 2), (torch.randn(2, 3),))
    module = training_module(program, "frozen")
    module.get_parameter("weight").requires_grad_(False)
    assert all(p.requires_grad for p in training_module(program, "frozen").parameters())


def test_losses_find_what_they_compare() -> None:
    logits, classes = torch.randn(4, 5, 3), torch.randint(5, (4, 3))
    torch.testing.assert_close(loss_of("cross_entropy", {"logits": logits}, classes), nn.functional.cross_entropy(logits, classes))
    tokens = logits.mT.contiguous()  # the class axis last, as language models return it
    torch.testing.assert_close(loss_of("cross_entropy", (tokens,), classes), nn.functional.cross_entropy(logits, classes))
    torch.testing.assert_close(loss_of("mse", logits, logits + 1), torch.tensor(1.0))
    torch.testing.assert_close(loss_of("output:parts.1", {"parts": [logits, torch.tensor([2.5])]}, None), torch.tensor(2.5))


@pytest.mark.parametrize(
    ("loss", "targets", "message"),
    [
        ("hinge", None, "not known"),
        ("mse", torch.zeros(2), "shape"),
        ("cross_entropy", None, "needs targets"),
        ("cross_entropy", torch.zeros(7, dtype=torch.long), "does not take"),
        ("output:loss", None, "no output"),
    ],
)
def test_a_loss_that_does_not_fit_says_why(loss: str, targets: Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loss_of(loss, torch.randn(4, 3), targets)
