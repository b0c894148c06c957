"""All measurements of one model on one sample: what a step holds, when, for whom, and what each option would cost."""

from dataclasses import dataclass, field, replace
from typing import Literal

Setting = bool | int | float | str | tuple[int, ...] | tuple[float, ...] | tuple[str, ...]
Phase = Literal["sliced", "compress", "forward", "backward", "update"]


@dataclass(frozen=True, slots=True)
class Moment:
    """A point of the step: an operation in one of its phases.

    `compress` is just before forward, where the form of its input is made; `update` the optimizer's step: after all backwards, of
    the operation `optimizer`; where a parameter is updated by itself, as its gradient comes or from rows, of that parameter, by its name.
    `sliced` is forward of an operation before the last split of a schedule, the first time, without autograd.
    """

    phase: Phase
    operation: str


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter.

    Attributes:
        gradient_energy: ‖g‖² of its exact gradient, mean over the sample's batches.
        batch_energies: that of each batch, in means. Empty for a sample of one batch.
    """

    name: str
    shape: tuple[int, ...]
    bytes: int
    gradient_energy: float
    batch_energies: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Overwritten:
    """What an operation's result is written over, where nobody holds it: what operation `producer` made and no later one reads.

    Attributes:
        activation: its index, if some operation may hold it.
    """

    producer: int
    bytes: int
    activation: int | None = None


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation of the step, in order of execution; the loss is the last.

    Attributes:
        inputs: indices of the operations whose outputs it reads and may send a gradient to.
        parameters: names of the parameters it reads itself.
        forward_bytes: bytes live while it runs forward beyond static bytes, storages and held forms: its workspace.
        backward_bytes: the same in its backward: gradients of activations and workspace. Both are what was measured less what
            is known, so they can be negative where the lifetimes assumed are too long.
        internal_bytes: bytes it keeps for its backward that are no operation's output (saved statistics, indices).
        passed_bytes: live just after its backward, while its parameters are updated, beyond static bytes, gradients of parameters
            and what is still held: the gradients it passes on.
        ranged_bytes: live in its backward, beyond `backward_bytes`, where it takes its input by ranges of samples and not whole; for
            each input, if it has several.
        over: what its result is written over.
        forward_seconds, backward_seconds: of a step of the whole batch.
        source: file and line of the model that made it, if known.
    """

    name: str
    target: str
    inputs: tuple[int, ...]
    parameters: tuple[str, ...]
    forward_bytes: int
    backward_bytes: int
    internal_bytes: int
    over: Overwritten | None
    ranged_bytes: int = 0
    passed_bytes: int = 0
    forward_seconds: float = 0.0
    backward_seconds: float = 0.0
    source: str | None = None


@dataclass(frozen=True, slots=True)
class Holder:
    """An operation that needs an activation in its backward.

    Attributes:
        operation: index of the operation.
        needed_for: `weight`: only while `parameter` trains; `gradient`: whenever a gradient passes the operation.
        parameter: the parameter whose gradient needs it, for `weight`.
    """

    operation: int
    needed_for: Literal["weight", "gradient"]
    parameter: str | None = None


@dataclass(frozen=True, slots=True)
class Option:
    """One way to hold an activation instead of whole.

    Attributes:
        technique: its name in the menu.
        settings: thresholds, ranks: what the runtime needs to do it.
        held_bytes: bytes held, from shapes alone: an upper limit that holds for any data.
        compress_bytes, restore_bytes: transient bytes of making it, in forward, and of using it, in backward.
        lost_energy: for each parameter that depends on it, ‖g−ĝ‖² (mean over batches) if it trains from this form.
        seconds: time of compressing and restoring, measured.
        sources: indices of the activations that it is worked out from, and that have to be whole for that.
        shipped_bytes: of tensors that the checkpoint brings for it, and of tables that the first step makes from them: they live as long
            as the model.
        batch_losses: what is lost in each batch, of all parameters together, in means. Empty where it was measured in one batch.
        by_gradient_of: the parameter with whose gradient that of the option's holder is worked out: it has to train too.
        folded_energy: for each norm's weight whose gradient may be worked out with those that train from this form, what it loses then.
    """

    technique: str
    settings: dict[str, Setting]
    held_bytes: int
    compress_bytes: int
    restore_bytes: int
    lost_energy: dict[str, float]
    seconds: float
    sources: tuple[int, ...] = ()
    shipped_bytes: int = 0
    batch_losses: tuple[float, ...] = ()
    by_gradient_of: str | None = None
    folded_energy: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Form:
    """A set of holders that one option serves together: they read the same values.

    Attributes:
        value: name of the operation whose output they hold (a view of the activation, often the activation itself).
        holders: indices into the activation's `holders`.
        spectra: for each mode, the squared singular values of the unfolding, largest first, as shares of their sum. Empty if not measured.
    """

    value: str
    holders: tuple[int, ...]
    options: tuple[Option, ...]
    spectra: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Activation:
    """One storage that some operation keeps for its backward.

    Attributes:
        name: the operation that makes it, or the model input it is.
        producer: index of that operation, -1 for a model input (whose bytes are static).
        born, last_use: indices of the operations that make it and that read it last in forward.
        forms: groups of holders that may be served by an option instead of the whole. Holders in no group need it whole.
    """

    name: str
    producer: int
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    born: int
    last_use: int
    holders: tuple[Holder, ...]
    forms: tuple[Form, ...]


@dataclass(frozen=True, slots=True)
class Live:
    """Bytes live at one moment of the plain step, from the allocator's own record, static bytes included."""

    moment: Moment
    live_bytes: int


@dataclass(frozen=True, slots=True)
class Step:
    """What a step holds while a number of samples go through the model at a time.

    Attributes:
        batch_size: that number.
        storages: of every storage that forward makes: bytes, and the operations that make it and read it last.
        rows: bytes of the gradient of each parameter that gets it as rows (of a table that embeddings alone read).
    """

    batch_size: int
    operations: tuple[Operation, ...]
    activations: tuple[Activation, ...]
    storages: tuple[tuple[int, int, int], ...]
    rows: dict[str, int]


@dataclass(frozen=True, slots=True)
class Profile:
    """All measurements of one model on one sample.

    Attributes:
        graph: fingerprint of the program the names refer to.
        static_bytes: parameters, buffers and the batch; gradients and optimizer state come with a plan.
        batch_bytes: of the batch, in these.
        steps: of the whole batch at once, then of its parts one after the other, from large to small; without the latter where
            they would not add up to the same gradient.
        splits: operations after which nothing reads what was before, but their result: where a step may go on with another
            number of samples.
        plain_peak_bytes: measured peak of the plain step with an optimizer without state.
        plain: footprint of the plain step at every moment.
        tensors: those that options ship, as `memfit.shipped` writes them, by the name that stands for them in settings.
        runtime_bytes: resident set of a fresh process that has loaded the model, without parameters and buffers.
    """

    graph: str
    loss: str
    batch_norm: Literal["frozen", "batch"]
    static_bytes: int
    parameters: tuple[Parameter, ...]
    steps: tuple[Step, ...]
    splits: tuple[str, ...]
    plain_peak_bytes: int
    plain_seconds: float
    plain: tuple[Live, ...] = field(default=())
    tensors: dict[str, str] = field(default_factory=dict)
    runtime_bytes: int = 0
    batch_bytes: int = 0

    def with_batch_of(self, samples: int) -> "Profile":
        """What is known of a batch of one of the smaller sizes: the same gradients for it, in less memory."""
        steps = tuple(step for step in self.steps if step.batch_size <= samples)
        static_bytes = self.static_bytes - self.batch_bytes + self.batch_bytes * samples // self.whole.batch_size
        return replace(self, steps=steps, static_bytes=static_bytes)

    @property
    def whole(self) -> Step:
        """The step of the whole batch at once."""
        return self.steps[0]
