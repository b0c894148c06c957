"""Whether a model, a sample and a request fit together, from their summaries alone."""

from dataclasses import replace

from planner.errors import BadSample, UnknownLoss
from planner.request import PlanRequest, ProfileSettings
from planner.trainable import check_patterns
from service.summary import ModelInput, ModelSummary, SampleSummary, SampleTensor

LOSSES_WITH_TARGETS = ("cross_entropy", "mse")


def settle(model: ModelSummary, sample: SampleSummary, settings: ProfileSettings) -> ProfileSettings:
    """Check that the sample feeds the model and the loss; the settings with their batch size settled.

    Raises:
        UnknownLoss: no such loss, or the model has no such output.
        BadSample: what was expected, and what the sample has.
    """
    check_loss(model, settings.loss)
    tensors = {tensor.name: tensor for tensor in sample.tensors}
    if settings.loss in LOSSES_WITH_TARGETS and "targets" not in tensors:
        raise BadSample(
            f"the loss {settings.loss!r} needs targets, but the sample has {_list(tensors)}. Add a tensor 'targets', or name the output "
            f"that is the loss, as 'output:NAME': this model's are {_list([*model.outputs])}.",
            expected="targets",
        )
    batch_size = settings.batch_size or sample.count
    if batch_size > sample.count:
        raise BadSample(
            f"the sample has {sample.count} samples, fewer than one batch of {batch_size}. Lower batch_size or send more.",
            samples=sample.count,
            batch_size=batch_size,
        )
    for tensor, wanted in _pairs(model, tensors):
        _check_input(tensor, wanted, batch_size)
    return replace(settings, batch_size=batch_size)


def check_loss(model: ModelSummary, loss: str) -> None:
    """
    Raises:
        UnknownLoss: no such loss, or the model has no such output.
    """
    kind, _, output = loss.partition(":")
    if loss not in LOSSES_WITH_TARGETS and not (kind == "output" and output in model.outputs):
        raise UnknownLoss(loss, model.outputs)


def check_trainable(model: ModelSummary, request: PlanRequest) -> None:
    """
    Raises:
        NothingTrainable, NothingFrozen: no parameter's name matches.
    """
    check_patterns(tuple(parameter.name for parameter in model.parameters), request)


def _pairs(model: ModelSummary, tensors: dict[str, SampleTensor]) -> list[tuple[SampleTensor, ModelInput]]:
    """The model's inputs with the tensors that feed them, by name or by position."""
    pairs = []
    for index, wanted in enumerate(model.inputs):
        tensor = tensors.get(f"inputs.{wanted.name}") or tensors.get(f"inputs.{index}")
        if tensor is not None:
            pairs.append((tensor, wanted))
    given = sorted(name for name in tensors if name != "targets")
    if len(pairs) < len(model.inputs) or len(pairs) < len(given):
        expected = [f"inputs.{index}" for index in range(len(model.inputs))]
        names = ", ".join(f"{name} (or inputs.{wanted.name})" for name, wanted in zip(expected, model.inputs, strict=True))
        raise BadSample(
            f"the model takes {names}, but the sample has {_list(given)}. Give each input of the model one tensor.",
            expected=expected,
            got=given,
        )
    return pairs


def _check_input(tensor: SampleTensor, wanted: ModelInput, batch_size: int) -> None:
    got = (batch_size, *tensor.shape[1:])
    if len(got) != len(wanted.shape) or any(size not in (None, have) for size, have in zip(wanted.shape, got, strict=True)):
        remedy = ""
        if len(got) == len(wanted.shape) and wanted.shape[0] not in (None, batch_size):
            remedy = f" The model was exported for batches of {wanted.shape[0]}: set batch_size, or export it with a dynamic first axis."
        raise BadSample(
            f"input {wanted.name!r} of the model has the shape {_shape(wanted.shape)}, "
            f"but a batch of {tensor.name!r} has {_shape(got)}.{remedy or ' Send what it takes.'}",
            input=wanted.name,
            expected=list(wanted.shape),
            got=list(got),
        )
    if tensor.dtype != wanted.dtype:
        raise BadSample(
            f"input {wanted.name!r} of the model is {wanted.dtype}, but {tensor.name!r} is {tensor.dtype}. Convert the sample.",
            input=wanted.name,
            expected=wanted.dtype,
            got=tensor.dtype,
        )


def _shape(shape: tuple[int | None, ...]) -> str:
    return "×".join("any" if size is None else str(size) for size in shape) or "()"


def _list(names: object) -> str:
    return ", ".join(sorted(map(str, names))) if isinstance(names, (dict, list)) and names else "none"
