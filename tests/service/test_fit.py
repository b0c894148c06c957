"""What fits together, and what does not, with what was expected and got."""

import pytest

from planner.errors import BadSample, NothingFrozen, NothingTrainable, UnknownLoss
from planner.request import Budget, PlanRequest, ProfileSettings
from service.fit import check_trainable, settle
from service.summary import ModelInput, ModelParameter, ModelSummary, SampleSummary, SampleTensor

MODEL = ModelSummary(
    inputs=(ModelInput("ids", (None, 16), "int64"), ModelInput("mask", (None, 16), "float32")),
    outputs=("loss", "logits"),
    parameters=(ModelParameter("encoder.weight", (4, 4), 64), ModelParameter("head.bias", (4,), 16)),
    buffers_bytes=0,
    operations={"aten.linear.default": 2},
)


def sample(*tensors: SampleTensor, count: int = 8) -> SampleSummary:
    return SampleSummary(count, tensors)


IDS, MASK = SampleTensor("inputs.0", (8, 16), "int64"), SampleTensor("inputs.1", (8, 16), "float32")
TARGETS = SampleTensor("targets", (8,), "int64")


@pytest.mark.parametrize("names", [("inputs.0", "inputs.1"), ("inputs.ids", "inputs.mask"), ("inputs.0", "inputs.mask")])
def test_inputs_are_found_by_position_and_by_name(names: tuple[str, str]) -> None:
    tensors = (SampleTensor(names[0], (8, 16), "int64"), SampleTensor(names[1], (8, 16), "float32"), TARGETS)
    assert settle(MODEL, sample(*tensors), ProfileSettings()) == ProfileSettings(batch_size=8)


def test_a_batch_size_is_kept_and_one_left_open_is_the_whole_sample() -> None:
    whole = sample(IDS, MASK, TARGETS)
    assert settle(MODEL, whole, ProfileSettings(batch_size=4)).batch_size == 4
    assert settle(MODEL, whole, ProfileSettings()) == settle(MODEL, whole, ProfileSettings(batch_size=8))


def test_a_model_that_returns_its_loss_needs_no_targets() -> None:
    assert settle(MODEL, sample(IDS, MASK), ProfileSettings("output:loss")).loss == "output:loss"


@pytest.mark.parametrize("loss", ["hinge", "output:nothing", "output:", "", "crossentropy", "loss"])
def test_an_unknown_loss_is_refused_with_the_outputs(loss: str) -> None:
    with pytest.raises(UnknownLoss, match="loss, logits") as refused:
        settle(MODEL, sample(IDS, MASK, TARGETS), ProfileSettings(loss))
    assert refused.value.facts["outputs"] == ["loss", "logits"]


@pytest.mark.parametrize(
    ("tensors", "settings", "why"),
    [
        ((IDS, MASK), ProfileSettings(), "needs targets.*'output:NAME': this model's are logits, loss"),
        ((IDS, TARGETS), ProfileSettings(), r"takes inputs.0 \(or inputs.ids\), inputs.1 \(or inputs.mask\), but the sample has inputs.0"),
        ((IDS, MASK, SampleTensor("inputs.2", (8,), "int64"), TARGETS), ProfileSettings(), "the sample has inputs.0, inputs.1, inputs.2"),
        ((IDS, MASK, SampleTensor("inputs.ids", (8, 16), "int64"), TARGETS), ProfileSettings(), "one tensor"),
        (
            (SampleTensor("inputs.0", (8, 17), "int64"), MASK, TARGETS),
            ProfileSettings(),
            "shape any×16, but a batch of 'inputs.0' has 8×17",
        ),
        ((SampleTensor("inputs.0", (8, 16, 1), "int64"), MASK, TARGETS), ProfileSettings(), "has 8×16×1"),
        ((SampleTensor("inputs.0", (8, 16), "int32"), MASK, TARGETS), ProfileSettings(), "is int64, but 'inputs.0' is int32"),
        ((IDS, MASK, TARGETS), ProfileSettings(batch_size=9), "fewer than one batch of 9"),
    ],
)
def test_what_does_not_fit_is_refused(tensors: tuple[SampleTensor, ...], settings: ProfileSettings, why: str) -> None:
    with pytest.raises(BadSample, match=why):
        settle(MODEL, sample(*tensors), settings)


def test_a_model_exported_for_one_batch_size_says_so() -> None:
    fixed = ModelSummary((ModelInput("x", (4, 3), "float32"),), ("0",), MODEL.parameters, 0, {})
    tensors = (SampleTensor("inputs.0", (8, 3), "float32"), TARGETS)
    with pytest.raises(BadSample, match="exported for batches of 4: set batch_size"):
        settle(fixed, sample(*tensors), ProfileSettings())
    assert settle(fixed, sample(*tensors), ProfileSettings(batch_size=4)).batch_size == 4


def test_patterns_that_match_nothing_are_refused() -> None:
    check_trainable(MODEL, PlanRequest(Budget(1), trainable=("nothing", "head.*")))
    with pytest.raises(NothingTrainable, match=r"encoder\.weight"):
        check_trainable(MODEL, PlanRequest(Budget(1), trainable=("tail.*",)))
    check_trainable(MODEL, PlanRequest(Budget(1), frozen=("encoder.*",)))
    with pytest.raises(NothingFrozen, match=r"'tail\.\*' of `frozen`.*encoder\.weight"):
        check_trainable(MODEL, PlanRequest(Budget(1), frozen=("encoder.*", "tail.*")))
