"""Fine-tuning starts from the exported file, and each method trains what it says."""

import pytest
import torch

from demo import training
from demo.finetune import PlainStep, digit_net, make_step
from demo.network import DigitNet


@pytest.fixture
def network():
    """With running statistics that fit its weights, as after training: signals and gradients are of ordinary size."""
    torch.manual_seed(0)
    net = DigitNet().train()
    with torch.no_grad():
        for _ in range(50):
            net(torch.randn(32, 1, 32, 32))
    return net


def test_an_exported_network_gives_its_weights_back(network, tmp_path):
    training.export(network, tmp_path / "net.pt2")
    images = torch.randn(5, 1, 32, 32)
    again = digit_net(torch.export.load(tmp_path / "net.pt2").state_dict)
    with torch.no_grad():
        assert torch.equal(again(images), network.eval()(images))


@pytest.mark.parametrize(("method", "trained"), [("plain", "."), ("last-layer", "classifier.")])
def test_a_step_moves_what_its_method_trains_and_no_statistics(network, tmp_path, method, trained):
    training.export(network, tmp_path / "net.pt2")
    net, step = make_step(method, tmp_path / "net.pt2")
    assert isinstance(step, PlainStep)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    step(torch.randn(8, 1, 32, 32), torch.arange(8))
    moved = {name for name, tensor in net.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {name for name, _ in net.named_parameters() if trained in name}
