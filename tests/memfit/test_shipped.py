"""Tensors as text: read back bit for bit, or refused."""

import json

import pytest
import torch
from torch import nn

from memfit.forms import Coded, form_from_settings
from memfit.operators.held import Hold
from memfit.shipped import decode, encode


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", [(), (3,), (2, 5), (0, 4)])
def test_a_tensor_comes_back_as_it_was(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = (torch.rand(shape) * 100).to(dtype)
    again = decode(json.loads(json.dumps(encode(tensor))))
    assert again.dtype == dtype
    torch.testing.assert_close(again, tensor, rtol=0, atol=0)


@pytest.mark.parametrize("text", ["tensor:", "tensor:int64:2:AAAA", "tensor:uint8:4:AAAA", "tensor:uint8:3:A*AA", "tensor:uint8:-3:AAAA"])
def test_what_is_no_tensor_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="of the checkpoint's plan"):
        decode(text)


def test_a_type_without_a_use_is_not_shipped() -> None:
    with pytest.raises(ValueError, match="not shipped"):
        encode(torch.zeros(2, dtype=torch.complex64))


def test_shipped_tensors_move_with_the_model_and_leave_its_state_alone() -> None:
    settings = {
        "feature": 1,
        "blocks": [2, 2],
        "sample_bytes": 40,
        "largest": 1.0,
        "bounds": [],
        "dither": False,
        "mean": encode(torch.zeros(3)),
        "deviations": encode(torch.full((12,), 255, dtype=torch.uint8)),
    }
    model = nn.Sequential(Hold(form_from_settings("coded", settings)))
    assert not model.state_dict()
    assert sum(buffer.nbytes for buffer in model.buffers()) == 3 * 4 + 12
    form = model.to("meta")[0].form
    assert isinstance(form, Coded) and form.mean.device.type == "meta" and form.blocks == (2, 2)
