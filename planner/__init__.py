"""What decides: profile a training step, choose a plan for a budget, patch and verify a checkpoint.

Importing the package costs nothing: `planner.solver`, `planner.profile`, `planner.plan`, `planner.request` and
`planner.errors` do without torch, so a service may plan from a stored profile without it.
"""
