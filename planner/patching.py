"""From a plan to what a device needs of it."""

from dataclasses import asdict

from memfit.recipe import RECOMPUTE, HeldForm, Recipe
from planner.footprint import planned_step
from planner.plan import INDEX, KEEP, MASK, NOT_NEEDED, ActivationChoice, Plan
from planner.profile import Profile, Setting


def recipe_of(profile: Profile, plan: Plan) -> Recipe:
    """The recipe that makes a program train as planned."""
    rows = profile.whole.rows if not plan.own_loop else {}
    held = [choice for choice in plan.activations if choice.technique not in (KEEP, NOT_NEEDED)]
    return Recipe(
        graph=profile.graph,
        batch_norm=profile.batch_norm,
        loss=profile.loss,
        optimizer=asdict(plan.optimizer),
        trained=tuple(parameter.name for parameter in plan.parameters if parameter.trained),
        masks=tuple(dict.fromkeys(choice.value for choice in held if _of_its_own(choice))),
        forms=tuple(
            HeldForm(choice.value, choice.holders, choice.technique, _with_tensors(choice.settings, profile))
            for choice in held
            if not _of_its_own(choice)
        ),
        in_place=_in_place(profile, plan),
        rows=tuple(parameter.name for parameter in plan.parameters if parameter.trained and parameter.name in rows),
        micro_batch=plan.schedule.micro_batch if len(profile.steps) > 1 and not plan.own_loop else None,
        early_updates=plan.schedule.early_updates,
        splits=plan.schedule.splits,
        slice=plan.schedule.slice,
        memory_bytes=plan.predicted_peak_bytes if plan.budget_scope == "process" else plan.budget_bytes,
    )


def _in_place(profile: Profile, plan: Plan) -> tuple[str, ...]:
    """Operations that may write their result over what they read, since the plan does not keep that."""
    step = planned_step(profile, plan.schedule)
    kept = {choice.name for choice in plan.activations if choice.technique == KEEP}
    over = ((operation.name, operation.over) for operation in step.operations)
    return tuple(n for n, it in over if it is not None and (it.activation is None or step.activations[it.activation].name not in kept))


def _of_its_own(choice: ActivationChoice) -> bool:
    """Whether it is what an operation keeps of its own making, and does with less of."""
    return choice.technique in (MASK, INDEX) or (choice.technique == RECOMPUTE and choice.holders == (choice.value,))


def _with_tensors(settings: dict[str, Setting], profile: Profile) -> dict[str, Setting]:
    """Settings with the tensors themselves in place of the names that stand for them."""
    return {name: profile.tensors.get(value, value) if isinstance(value, str) else value for name, value in settings.items()}
