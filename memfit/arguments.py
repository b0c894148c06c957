"""The arguments of a graph's operation, by name."""

from typing import Any

from torch.fx import Node


def arguments(node: Node) -> dict[str, Any]:
    """All arguments of an operation with a schema, defaults included."""
    schema = node.target._schema  # type: ignore[union-attr]
    given = dict(zip((argument.name for argument in schema.arguments), node.args, strict=False)) | dict(node.kwargs)
    return {argument.name: given.get(argument.name, argument.default_value) for argument in schema.arguments}
