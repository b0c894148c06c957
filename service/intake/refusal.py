"""How a model file is refused: in words that end with what to do."""

from planner.errors import BadModel

REMEDY = (
    "Export the model with torch.export.export(model, (inputs,), dynamic_shapes=…) and save it with "
    'torch.export.save(program, "model.pt2").'
)


def refusal(what: str, **facts: object) -> BadModel:
    """A refusal of what a file holds. Values from the file are cut: they may be long."""
    short = {name: fact[:200] if isinstance(fact, str) else fact for name, fact in facts.items()}
    return BadModel(f"{what}. {REMEDY}", **short)


def damaged(what: str, **facts: object) -> BadModel:
    """A refusal of a file that was a `.pt2` once."""
    return BadModel(f"the file is damaged or cut short: {what}. Send it again, or save it again. {REMEDY}", **facts)
