"""How a program's inputs and outputs are nested: JSON in which torch follows names of classes, and imports their modules."""

import json
import re
from typing import Any

LEAF: dict[str, Any] = {"type": None, "context": None, "children_spec": []}
SEQUENCES = {"builtins.tuple", "builtins.list"}
MAPPINGS = {"builtins.dict", "collections.OrderedDict"}
KEY = re.compile(r"[A-Za-z_]\w{0,199}", re.ASCII)  # keys become names of arguments in source text
MAX_DEPTH = 16
MAX_CHARACTERS = 2**20


def canonical_tree(text: str) -> str:
    """The tree, read and written anew.

    Raises:
        ValueError: it is made of something else than tuples, lists and dicts.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError("the tree of inputs or outputs is too large")
    try:
        protocol, tree = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        raise ValueError("the tree of inputs or outputs is no JSON") from None
    if protocol != 1:
        raise ValueError(f"the tree of inputs or outputs is of an unknown kind, {str(protocol)[:40]!r}")
    return json.dumps([1, _node(tree, MAX_DEPTH)])


def _node(node: Any, depth: int) -> dict[str, Any]:
    if not isinstance(node, dict) or depth == 0:
        raise ValueError("the tree of inputs or outputs is damaged, or nested too deeply")
    kind, children = node.get("type"), node.get("children_spec")
    if not isinstance(children, list):
        raise ValueError("the tree of inputs or outputs is damaged")
    if kind is None:
        return dict(LEAF)
    if kind not in SEQUENCES | MAPPINGS:
        raise ValueError(f"the model takes or gives a {str(kind)[:80]!r}. Let it take and give tensors, and tuples, lists or dicts of them")
    context = json.dumps(_keys(node.get("context"), len(children)) if kind in MAPPINGS else None)
    return {"type": kind, "context": context, "children_spec": [_node(child, depth - 1) for child in children]}


def _keys(context: Any, count: int) -> list[str]:
    try:
        keys = json.loads(context)
    except (ValueError, TypeError, RecursionError):
        keys = None
    if not isinstance(keys, list) or len(keys) != count or not all(isinstance(key, str) and KEY.fullmatch(key) for key in keys):
        raise ValueError("a dict that the model takes or gives has keys that are no names. Use names of letters, digits and _")
    return keys
