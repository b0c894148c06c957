"""A program's document, made anew of what its schema lets through."""

import json

from pydantic import ValidationError

from service.intake.operators import check_target
from service.intake.refusal import refusal
from service.intake.schema import PROGRAM


def rewritten_program(document: bytes) -> bytes:
    """The document of a program, made anew. Guards are left out: they are Python, and memfit checks inputs itself.

    Raises:
        BadModel: it has what no program needs.
        UnsupportedOperation: it calls what is no operation of a training step.
    """
    try:
        program = PROGRAM.validate_json(document)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)[0]
        if found["type"] == "json_invalid":
            raise refusal("the program is not JSON") from error
        where = ".".join(str(part) for part in found["loc"])[-200:]
        message = found["msg"].removeprefix("Value error, ")
        raise refusal(f"the program is not one that can be planned, at {where!r}: {message[:300]}", where=where) from error
    for number, node in enumerate(program["graph_module"]["graph"]["nodes"]):
        check_target(node.get("name") or f"node {number}", node["target"], node["metadata"].get("stack_trace", ""))
    return json.dumps(program, allow_nan=False).encode()
