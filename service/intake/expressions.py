"""Sizes that are not numbers: expressions that torch writes by sympy's `srepr` and gives to `sympify`, which evaluates Python."""

import ast
import re
from functools import lru_cache

MAX_CHARACTERS = 4_000
MAX_TERMS = 400
MAX_EXPONENT = 64
MAX_POWERS = 3  # each may raise a number to the 64th: three make 32 KiB, and ten would make more than there is
POWERS = {"Pow", "PowByNatural", "FloatPow", "LShift"}
FUNCTIONS = POWERS | {
    *("Integer", "Rational", "Add", "Mul", "Max", "Min", "Mod", "PythonMod", "FloorDiv", "CleanDiv", "CeilDiv", "ModularIndexing"),
    *("IntTrueDiv", "FloatTrueDiv", "CeilToInt", "FloorToInt", "TruncToInt", "TruncToFloat", "RoundToInt", "RoundDecimal", "ToFloat"),
    *("RShift", "Where", "Identity", "IsNonOverlappingAndDenseIndicator", "And", "Or", "Not", "Equality", "Unequality"),
    *("GreaterThan", "LessThan", "StrictGreaterThan", "StrictLessThan"),
}
CONSTANTS = {"true", "false", "True", "False"}
ASSUMPTIONS = {"positive", "nonnegative", "negative", "integer", "real", "zero", "finite", "commutative"}
SYMBOL = re.compile(r"(s|u|zuf|zf|f|i)\d{1,6}")


@lru_cache(maxsize=10_000)
def canonical_expression(text: str) -> str:
    """The expression, parsed and written anew.

    Raises:
        ValueError: it is more than arithmetic, or longer or higher than any size.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"a size is an expression of {len(text):,} characters")
    try:
        tree = ast.parse(text, mode="eval")
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        powers = sum(isinstance(call.func, ast.Name) and call.func.id in POWERS for call in calls)
        if len(calls) > MAX_TERMS or powers > MAX_POWERS or not _computes(tree.body):
            raise ValueError(f"the size {text[:80]!r} is more than arithmetic")
        return ast.unparse(tree)
    except (SyntaxError, RecursionError, MemoryError):
        raise ValueError(f"the size {text[:80]!r} is no expression") from None


def _computes(node: ast.expr) -> bool:
    match node:
        case ast.Call(func=ast.Name(id="Symbol"), args=[ast.Constant(value=str(name))], keywords=keywords):
            return SYMBOL.fullmatch(name) is not None and all(_is_assumption(keyword) for keyword in keywords)
        case ast.Call(func=ast.Name(id="Float"), args=[ast.Constant(value=str(digits))], keywords=keywords):
            known = all(keyword.arg == "precision" and isinstance(keyword.value, ast.Constant) for keyword in keywords)
            return known and all(ast.unparse(keyword.value) == "53" for keyword in keywords) and _is_number(digits)
        case ast.Call(func=ast.Name(id=name), args=[_, exponent]) if name in POWERS and not _is_small(exponent):
            return False
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]):
            return name in FUNCTIONS and all(_computes(arg) for arg in args)
        case ast.Name(id=name):
            return name in CONSTANTS
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=value)) | ast.Constant(value=value):
            return isinstance(value, int) and abs(value) < 2**63
        case _:
            return False


def _is_assumption(keyword: ast.keyword) -> bool:
    return keyword.arg in ASSUMPTIONS and isinstance(keyword.value, ast.Constant) and isinstance(keyword.value.value, bool)


def _is_number(digits: str) -> bool:
    return re.fullmatch(r"-?\d{1,40}(\.\d{0,40})?(e[+-]?\d{1,3})?", digits) is not None


def _is_small(exponent: ast.expr) -> bool:
    """Whether an exponent is `Integer(n)` with a small n, or a symbol."""
    match exponent:
        case ast.Call(func=ast.Name(id="Symbol")):
            return True
        case ast.Call(func=ast.Name(id="Integer"), args=[number]):
            text = ast.unparse(number)
            return re.fullmatch(r"-?\d{1,2}", text) is not None and abs(int(text)) <= MAX_EXPONENT
        case _:
            return False
