"""What a program may call: ATen's and prims' operators, and arithmetic on sizes."""

import re

from planner.errors import UnsupportedOperation

BITWISE = r"__i?(and|or|xor|lshift|rshift)__"
ATEN = re.compile(rf"torch\.ops\.(?:aten|prims)\.({BITWISE}|(?!__)\w+)\.(?!_|op$|overloads$)\w+")
# They open files, write to the log, change a tensor's storage, or take indices on trust.
FORBIDDEN = re.compile(
    r"from_file\w*|save|print|_print|open|set_\w*|resize_?|_?resize_as_?|_?resize_output\w*|record_stream|\w*sparse\w*|\w*csr\w*"
)
SIZES = {
    *(f"_operator.{name}" for name in ("eq", "ne", "le", "ge", "lt", "gt", "neg", "pos", "mul", "add", "sub", "floordiv", "mod", "pow")),
    *(f"_operator.{name}" for name in ("truediv", "and_", "or_", "lshift", "rshift", "getitem")),
    *(f"torch.sym_{name}" for name in ("not", "int", "float", "ite", "max", "min", "sqrt", "sum")),
    "torch._sym_sqrt",
    "math.trunc",
}
FILE_LINE = re.compile(r' *File "([^"\n]{1,300})", line (\d{1,7}), in [\w<>.]{1,200}')
MAX_LINES = 32


def check_target(name: str, target: str, trace: str) -> None:
    """
    Raises:
        UnsupportedOperation: the operation is none of those that a training step may consist of.
    """
    aten = ATEN.fullmatch(target)
    if target in SIZES or (aten and not FORBIDDEN.fullmatch(aten[1])):
        return
    if target.startswith("torch.ops.higher_order."):
        reason, remedy = (
            "runs a graph inside the graph",
            "Write the model without torch.cond, map, scan or checkpoint wrappers before exporting.",
        )
    elif aten:
        reason, remedy = "reaches out of the tensors it is given", "Replace it by operations on plain, dense tensors."
    else:
        reason, remedy = "is no operation of torch", "Export the model with torch.export.export, without custom functions or operators."
    raise UnsupportedOperation(name[:200], target[:200], reason, remedy, _source(trace))


def kept_trace(trace: str) -> str:
    """The lines of a stack trace that name files: those are for people, and nothing else of it is needed."""
    return "\n".join([line for line in trace.splitlines() if FILE_LINE.fullmatch(line)][-MAX_LINES:])


def _source(trace: str) -> str | None:
    """File and line of the model's own code."""
    own = [line for line in kept_trace(trace).splitlines() if "/torch/" not in line]
    if not own or (found := FILE_LINE.fullmatch(own[-1])) is None:
        return None
    return f"{found[1].rsplit('/', 1)[-1]}:{found[2]}"
