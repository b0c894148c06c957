"""One choice for everything, for one budget, and the certificate that proves it."""

from dataclasses import dataclass, field

from planner.profile import Moment, Setting
from planner.request import BudgetScope, Optimizer

# The techniques that compress nothing; the names of the others are those of `memfit.forms`.
KEEP, MASK, INDEX, NOT_NEEDED = "keep", "mask", "index", "not needed"
RECOMPUTE, FOLD = "recompute", "fold"  # as in `memfit.recipe`, which needs torch


# Ways to run the whole step, which requests may allow or forbid like techniques.
MICRO_BATCH, EARLY_UPDATE, SLICES = "micro_batch", "early_update", "slices"

# As `memfit.forms`, which needs torch.
FORMS = ("svd", "hosvd", "basis", "subspace", "coded", "int8", "int4", "bfloat16", "patch_mean", "bitmap")
TECHNIQUES = (KEEP, MASK, INDEX, RECOMPUTE, FOLD, *FORMS, MICRO_BATCH, EARLY_UPDATE, SLICES)  # that requests may name


@dataclass(frozen=True, slots=True)
class Schedule:
    """How a batch goes through the model.

    Attributes:
        micro_batch: samples at a time; the gradients of all parts of a batch are added up.
        early_updates: each parameter is updated as soon as its gradient is complete, which then goes. Only where the whole
            batch goes at once, after the last split if there is one.
        splits: operations that divide the model into segments, in order. Up to the last the batch goes without autograd, and after
            that at once; for their gradients, the segments before it run a second time, each from the result of the one before.
        slice: samples at a time up to the last split: fewer, or the whole batch.
    """

    micro_batch: int
    early_updates: bool = False
    splits: tuple[str, ...] = ()
    slice: int = 0

    def __str__(self) -> str:
        samples = self.slice if self.splits else self.micro_batch
        how = f"{samples} sample{'s' * (samples > 1)} at a time"
        if self.splits:
            segments = f", in {len(self.splits)} segments" if len(self.splits) > 1 else ""
            how += f" up to {self.splits[-1]}{segments}, then all at once"
        return how + (", updates as gradients come" if self.early_updates else "")


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
class Alternative:
    """The best of a simpler way in the same budget, as predicted.

    Attributes:
        name: `lossless`, `smaller_batch`, `last_layers` or `one_epsilon`.
        fits: whether anything of it does; if not, the rest says nothing.
        fidelity: of a smaller batch, to that batch's own gradient.
        slowdown: seconds in those of the plain step, for the same number of samples.
        facts: what it comes to, such as the batch size.
    """

    name: str
    fits: bool
    fidelity: float = 0.0
    predicted_peak_bytes: int = 0
    slowdown: float = 0.0
    facts: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to train and how everything is held.

    Attributes:
        budget_bytes: what the footprint may reach: the budget that was asked for, less `headroom_bytes` that are kept free.
        fidelity: 1 − Σ‖g−ĝ‖² / Σ‖g‖² over the trainable parameters; `fidelity_range` the lowest and highest of the sample's batches.
        score: what the plan was chosen for: the fidelity, or with the objective `relative` the mean over parameters of each one's own.
        bound: the highest score any plan of this menu could have, as proved by the solver; gap = bound − score.
        predicted_seconds: of a step; `slowdown` is that in plain steps.
        timeline: predicted footprint at every moment of the step; `peak` its largest.
        alternatives: simpler ways in the same budget; worked out while the plan is proved.
        budget_scope, runtime_bytes: of a budget of the whole process, what is not the footprint's: beyond `budget_bytes`.
    """

    budget_bytes: int
    headroom_bytes: int
    fidelity: float
    objective: str
    score: float
    bound: float
    gap: float
    predicted_peak_bytes: int
    predicted_seconds: float
    slowdown: float
    peak: Footprint
    schedule: Schedule
    optimizer: Optimizer
    own_loop: bool
    parameters: tuple[ParameterChoice, ...]
    activations: tuple[ActivationChoice, ...]
    timeline: tuple[Footprint, ...]
    solve_seconds: float
    variables: int
    alternatives: tuple[Alternative, ...] = ()
    budget_scope: BudgetScope = "training"
    runtime_bytes: int = 0
    fidelity_range: tuple[float, float] | None = None

    def holds(self, measured: "Measured") -> bool:
        """Whether a measured step stayed within the budget."""
        if self.budget_scope == "process" and measured.process_peak_bytes > self.budget_bytes + self.runtime_bytes:
            return False
        return measured.measured_peak_bytes <= self.budget_bytes


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
    """What the patched model's step really took, beside the plain model's.

    Attributes:
        fidelity: over all batches of the sample; `fidelity_range` the lowest and highest of one.
    """

    measured_peak_bytes: int
    process_peak_bytes: int
    runtime_bytes: int
    fidelity: float
    step_seconds: float
    plain: Measured
    host: dict[str, str]
    fidelity_range: tuple[float, float] | None = None


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
