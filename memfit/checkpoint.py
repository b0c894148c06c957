"""Patched checkpoints: the plain exported program, with the plan beside it as an extra file.

Any torch opens the program as it was; `load` rewrites it as the plan says. So a checkpoint holds no code, no pickle and no
operator that another version of memfit would have to know.
"""

from pathlib import Path

import torch
from torch.fx import GraphModule

from memfit.program import training_module
from memfit.recipe import Recipe
from memfit.rewriting import rewrite

RECIPE_FILE = "memfit/recipe.json"


class PlannedModule(GraphModule):
    """An `nn.Module` with the original parameter names that holds activations as its plan says.

    Attributes:
        recipe: what the device needs of the plan.
    """

    recipe: Recipe


def save(path: str | Path, program: torch.export.ExportedProgram, recipe: Recipe) -> None:
    """Write a patched checkpoint."""
    program._example_inputs = None  # they are pickled into the file, and nobody needs them
    torch.export.save(program, path, extra_files={RECIPE_FILE: recipe.to_json()})


def load(path: str | Path) -> PlannedModule:
    """Open a patched checkpoint, ready to train.

    Raises:
        ValueError: the file holds no plan, or one this memfit cannot follow.
    """
    extra = {RECIPE_FILE: ""}
    program = torch.export.load(path, extra_files=extra)
    if not extra[RECIPE_FILE]:
        raise ValueError(f"{path} holds no plan: it is an exported program that memfit has not patched")
    return apply(program, Recipe.from_json(extra[RECIPE_FILE]))


def apply(program: torch.export.ExportedProgram, recipe: Recipe) -> PlannedModule:
    """The module a recipe makes of a program; what `load` does after reading."""
    module = rewrite(training_module(program, recipe.batch_norm), recipe)
    module.__class__ = type("PlannedModule", (PlannedModule, type(module)), {})
    assert isinstance(module, PlannedModule)
    module.recipe = recipe
    return module
