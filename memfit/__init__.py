"""Train inside a memory budget: the runtime of a device. Needs torch and nothing else.

model = memfit.load("net.pt2")               # an nn.Module with the original parameter names
step = memfit.TrainingStep(model, lr=0.05)   # the plan's optimizer and loss
loss = step(inputs, targets)                 # one training step inside the budget
"""

from memfit.checkpoint import PlannedModule, load, save
from memfit.process_memory import return_freed_memory
from memfit.recipe import Recipe
from memfit.training_step import TrainingStep

__all__ = ["PlannedModule", "Recipe", "TrainingStep", "load", "return_freed_memory", "save"]
__version__ = "0.1.0"
