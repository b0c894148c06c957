"""Programs become modules that train as asked; what cannot be planned is refused by name."""

import warnings

import pytest
import torch
from torch import Tensor, nn

from memfit.losses import loss_of
from memfit.program import training_module
from planner.capture import capture, capture_module, operation_counts
from planner.errors import BadModel, UnknownLoss, UnsupportedOperation
from planner.profiling import check_loss
from planner.sample import ModelInput
from planner.structure import observe_structure
from tests.planner.networks import Convolutional, convolutional_sample, export, graph_of


def loss_and_gradients(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    torch.manual_seed(7)
    model.zero_grad()
    loss = loss_of("cross_entropy", model(x), y)
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("exported_in_training", [True, False])
@pytest.mark.parametrize("batch_norm", ["frozen", "batch"])
def test_the_request_and_not_the_export_decides_how_it_trains(exported_in_training: bool, batch_norm: str) -> None:
    torch.manual_seed(0)
    model, sample = Convolutional(), convolutional_sample()
    x, y = sample["inputs.0"], sample["targets"]
    module = training_module(export(model.train(exported_in_training), sample), batch_norm)  # type: ignore[arg-type]
    model.train()
    model.norm.train(batch_norm == "batch")
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with warnings.catch_warnings(action="ignore"):  # torch warns of the uneven `same` padding
        loss, gradients = loss_and_gradients(model, x, y)
    after = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with torch.no_grad():  # the exported program shares nothing with the model
        for name, buffer in module.named_buffers():
            buffer.copy_(before[name])
    our_loss, ours = loss_and_gradients(module, x, y)
    torch.testing.assert_close(our_loss, loss)
    assert ours.keys() == gradients.keys()
    for name in gradients:
        torch.testing.assert_close(ours[name], gradients[name], msg=name)
    for name, buffer in module.named_buffers():
        torch.testing.assert_close(buffer, after[name], msg=name)
    with warnings.catch_warnings(action="ignore"):  # torch warns of the uneven `same` padding
        torch.testing.assert_close(module.eval()(x), model.eval()(x))
    assert module.train().training


def test_names_are_the_original_ones() -> None:
    model, sample = Convolutional(), convolutional_sample()
    module = training_module(export(model, sample), "frozen")
    assert module.state_dict().keys() == model.state_dict().keys()
    model.load_state_dict(module.state_dict())


def test_inputs_outputs_and_operations_are_told() -> None:
    graph, _, _ = graph_of("attending")
    assert graph.inputs == (ModelInput("tokens", (None, 6), "int64"), ModelInput("labels", (None,), "int64"))
    assert graph.outputs == ("loss", "logits")
    assert operation_counts(graph)["aten.linear.default"] == 6
    check_loss(graph, "output:loss")
    for loss in ("output:nothing", "hinge", "output:"):
        with pytest.raises(UnknownLoss, match="is not known"):
            check_loss(graph, loss)


def test_one_storage_is_one_activation_with_all_its_holders() -> None:
    from planner.sample import batches_of

    graph, sample, loss = graph_of("attending")
    structure = observe_structure(graph, batches_of(sample, graph.inputs, loss, None)[0], loss)
    normed = next(s for s in structure.storages if s.name == "layer_norm")
    linears = [i for i, target in enumerate(structure.targets) if target == "aten.linear.default"]
    assert normed.holders == set(linears[:3]), "q, k and v hold one input"


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = torch.cond(x.sum() > 0, lambda x: self.layer(x), lambda x: -self.layer(x), (x,))
        return result


class Remembering(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.register_buffer("seen", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add_(x.detach().mean(0))
        result: Tensor = self.layer(x)
        return result


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Branching(), "runs a graph inside the graph"),
        (Remembering(), "outlives the step"),
        (nn.GRU(3, 4), "all of time by itself.*nn.GRUCell"),
    ],
)
@pytest.mark.filterwarnings("ignore:The tensor attributes self._flat_weights")  # of torch's own recurrent layers
def test_what_cannot_be_planned_is_named_with_what_to_do(model: nn.Module, reason: str) -> None:
    with pytest.raises(UnsupportedOperation, match=reason) as caught:
        capture(torch.export.export(model, (torch.randn(2, 3),)))
    assert caught.value.facts["operation"]


def test_a_model_without_parameters_is_refused() -> None:
    with pytest.raises(BadModel, match="nothing to train"):
        capture_module(nn.ReLU(), (torch.randn(2, 3),))


def test_a_module_is_exported_on_the_way_in() -> None:
    assert capture_module(nn.Linear(3, 2), (torch.randn(4, 3),)).inputs == (ModelInput("input_1", (None, 3), "float32"),)
