"""One choice for everything, for one budget, and the certificate that proves it."""

from dataclasses import dataclass, field

from planner.profile import Moment, Setting
from planner.request import BudgetScope, Optimizer

# The techniques that compress nothing; the names of the others are those of `memfit.forms`.
KEEP, MASK, INDEX, NOT_NEEDED = "keep", "mask", "index", "not needed"
RECOMPUTE = "recompute"  # as in `memfit.recipe`, which needs torch


# Ways to run the whole step, which requests may allow or forbid like techniques.
MICRO_BATCH, EARLY_UPDATE, SLICES = "micro_batch", "early_update", "slices"


@dataclass(frozen=True, slots=True)
class Schedule:
    """How a batch goes through the model.

    Attributes:
        micro_batch: samples at a time; the gradients of all parts of a batch are added up.
        early_updates: each parameter is updated as soon as its gradient is complete, which then goes. Only where the whole
            batch goes at once, after the split if there is one.
        split: the operation up to which fewer samples go at a time, without autograd, and after that the whole batch at once. For
            the gradient of what is before it, that runs a second time.
        slice: samples at a time up to the split.
    """

    micro_batch: int
    early_updates: bool = False
    split: str | None = None
    slice: int = 0


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes live at one moment.

    Static: parameters, buffers, gradients, optimizer state and batch. Saved: activations held, in all and by technique. Transient:
    what the running operation needs.
    """

    moment: Moment
    static_bytes: int
    saved_bytes: int
    transient_bytes: int
    saved_by_technique: dict[str, int] = field(default_factory=dict)

    @property
    def total_bytes(self) -> int:
        return self.static_bytes + self.saved_bytes + self.transient_bytes


@dataclass(frozen=True, slots=True)
class ParameterChoice:
    """One parameter: whether the request lets it train (fidelity counts over those), and whether the plan trains it."""

    name: str
    trainable: bool
    trained: bool
    bytes: int
    gradient_energy: float


@dataclass(frozen=True, slots=True)
class ActivationChoice:
    """How one activation is held. Two rows for one storage where two groups of holders hold it in two ways (a mask and factors).

    Attributes:
        value: the operation whose output is held.
        holders: names of the operations served.
    """

    name: str
    value: str
    holders: tuple[str, ...]
    shape: tuple[int, ...]
    bytes: int
    technique: str
    settings: dict[str, Setting]
    held_bytes: int
    lost_energy: float


@dataclass(frozen=True, slots=True)
class Plan:
    """What to train and how everything is held.

    Attributes:
        bound: the highest fidelity any plan of this menu could have, as proved by the solver; gap = bound − fidelity.
        timeline: predicted footprint at every moment of the step; `peak` its largest.
        budget_scope, runtime_bytes: where the budget is of the whole process, what of it is not the footprint's.
    """

    budget_bytes: int
    fidelity: float
    bound: float
    gap: float
    predicted_peak_bytes: int
    predicted_seconds: float
    peak: Footprint
    schedule: Schedule
    optimizer: Optimizer
    own_loop: bool
    parameters: tuple[ParameterChoice, ...]
    activations: tuple[ActivationChoice, ...]
    timeline: tuple[Footprint, ...]
    solve_seconds: float
    variables: int
    budget_scope: BudgetScope = "training"
    runtime_bytes: int = 0

    def holds(self, measured: "Measured") -> bool:
        """Whether a measured step stayed within the budget."""
        peak_bytes = measured.process_peak_bytes if self.budget_scope == "process" else measured.measured_peak_bytes
        return peak_bytes <= self.budget_bytes


@dataclass(frozen=True, slots=True)
class Measured:
    """One measured training step in a fresh process.

    Attributes:
        measured_peak_bytes: static bytes plus the highest sum of allocations, by the allocator's record.
        process_peak_bytes: peak resident set of the whole process; runtime_bytes: of it before the model was loaded.
    """

    measured_peak_bytes: int
    process_peak_bytes: int
    runtime_bytes: int
    step_seconds: float


@dataclass(frozen=True, slots=True)
class Certificate:
    """What the patched model's step really took, beside the plain model's."""

    measured_peak_bytes: int
    process_peak_bytes: int
    runtime_bytes: int
    fidelity: float
    step_seconds: float
    plain: Measured
    host: dict[str, str]


@dataclass(frozen=True, slots=True)
class Correction:
    """Bytes a measured step took at one moment beyond the plan's prediction: the next plan of that schedule leaves room for them."""

    schedule: Schedule
    moment: Moment
    extra_bytes: int


@dataclass(frozen=True, slots=True)
class Proof:
    """What a measured step of a patched checkpoint says of its plan.

    Attributes:
        certificate: None where the peak is over the budget: such a plan is not proved.
        corrections: what the next plan has to leave room for, where it is over.
    """

    measured_peak_bytes: int
    certificate: Certificate | None
    corrections: tuple[Correction, ...]
