"""From a plan to what a device needs of it."""

from dataclasses import asdict

from memfit.recipe import HeldForm, Recipe
from planner.plan import INDEX, KEEP, MASK, NOT_NEEDED, Plan
from planner.profile import Profile, Setting


def recipe_of(profile: Profile, plan: Plan) -> Recipe:
    """The recipe that makes a program train as planned."""
    held = [choice for choice in plan.activations if choice.technique not in (KEEP, NOT_NEEDED)]
    own = (MASK, INDEX)  # of one operation alone
    return Recipe(
        graph=profile.graph,
        batch_norm=profile.batch_norm,
        loss=profile.loss,
        optimizer=asdict(plan.optimizer),
        trained=tuple(parameter.name for parameter in plan.parameters if parameter.trained),
        masks=tuple(choice.value for choice in held if choice.technique in own),
        forms=tuple(
            HeldForm(choice.value, choice.holders, choice.technique, _with_tensors(choice.settings, profile))
            for choice in held
            if choice.technique not in own
        ),
        micro_batch=plan.schedule.micro_batch if len(profile.steps) > 1 and not plan.own_loop else None,
        early_updates=plan.schedule.early_updates,
        split=plan.schedule.split,
        slice=plan.schedule.slice,
    )


def _with_tensors(settings: dict[str, Setting], profile: Profile) -> dict[str, Setting]:
    """Settings with the tensors themselves in place of the names that stand for them."""
    return {name: profile.tensors.get(value, value) if isinstance(value, str) else value for name, value in settings.items()}
