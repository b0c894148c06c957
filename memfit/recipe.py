"""What a device needs of a plan: what trains, and how every activation that is not kept whole is held."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from memfit.program import BatchNormMode

RECIPE_VERSION = 6
RECOMPUTE = "recompute"  # the technique whose settings are `sources`, operations that the value is worked out from again
FOLD = "fold"  # that of a convolution's result that only a norm holds: not at all, as `memfit.operators.folded` has it


@dataclass(frozen=True, slots=True)
class HeldForm:
    """One held form of the output of operation `value`, shared by the operations `holders`."""

    value: str
    holders: tuple[str, ...]
    technique: str
    settings: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a device needs of a plan.

    Attributes:
        graph: fingerprint of the graph that the names refer to.
        trained: names of the parameters that train; all others are frozen.
        masks: operations that hold less of their own than by themselves: one bit an element; a byte a window; or nothing but
            their inputs, from which they are worked out again.
        forms: activations held compressed. An operation in no form holds its input whole, if its weight trains.
        in_place: operations that write their result over what they read last, since nobody holds that.
        rows: parameters that get their gradient as the rows that embeddings read of them.
        optimizer: name (`sgd`, `adam`, `adamw`) and settings, of the planned step.
        micro_batch: samples that go through the model at a time; None: a batch is never divided.
        early_updates: the step updates each parameter as soon as its gradient is complete, which then goes.
        memory_bytes: what the process may hold of parameters, optimizer state, batch and step; 0: no more than lives at once.
        splits: operations that divide the model, in order: up to the last the batch goes without autograd, `slice` samples at a time,
            and each segment between two of them once more for its gradient. Empty: the model is not divided.
    """

    graph: str
    batch_norm: BatchNormMode
    loss: str
    optimizer: dict[str, Any]
    trained: tuple[str, ...]
    masks: tuple[str, ...]
    forms: tuple[HeldForm, ...]
    in_place: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()
    micro_batch: int | None = None
    early_updates: bool = False
    splits: tuple[str, ...] = ()
    slice: int = 0
    memory_bytes: int = 0

    def to_json(self) -> str:
        return json.dumps({"version": RECIPE_VERSION, **asdict(self)})

    @classmethod
    def from_json(cls, text: str) -> "Recipe":
        """Read what `to_json` wrote.

        Raises:
            ValueError: it is not a recipe, or one of a newer memfit.
        """
        try:
            values = json.loads(text)
            version = values.pop("version")
            if version != RECIPE_VERSION:
                raise ValueError(
                    f"the checkpoint's plan has version {version}, this memfit reads {RECIPE_VERSION}: install the memfit that made it"
                )
            forms = tuple(HeldForm(**{**form, "holders": tuple(form["holders"])}) for form in values.pop("forms"))
            values |= {name: tuple(values[name]) for name in ("trained", "masks", "in_place", "rows", "splits")}
            return cls(forms=forms, **values)
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"the checkpoint's plan cannot be read ({error}): it was not written by memfit") from None
