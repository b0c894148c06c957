"""Checks an uploaded model file before anything opens it: a complete `.pt2` that holds data and names, and no code.

Opening a `.pt2` with torch runs what is in it: weights and constants may be pickles, the example inputs are one, symbolic
shapes and guards are evaluated as Python, and compiled libraries are loaded. None of that is needed for a program that
`torch.export.save` wrote from plain tensors, so all of it is refused here. Torch is not imported.
"""

import ast
import json
import pickletools
import re
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

from planner.errors import BadModel

REMEDY = (
    "Export the model with torch.export.export(model, (inputs,), dynamic_shapes=…) and save it with "
    'torch.export.save(program, "model.pt2").'
)
MAX_JSON_BYTES = 256 * 2**20
ZIP_HEAD = b"PK\x03\x04"
ENTRIES = re.compile(
    r"archive_format|archive_version|byteorder|version|\.data/\w+|models/[^/]+\.json|extra/.+"
    r"|data/weights/(weight_\d+|[^/]+_weights_config\.json)|data/constants/(tensor_\d+|[^/]+_constants_config\.json)|data/sample_inputs/[^/]+\.pt"
)
PICKLE_LOOKUPS = {"GLOBAL", "STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"}
PICKLE_GLOBALS = re.compile(
    r"collections OrderedDict|torch (\w+Storage|Tensor|Size|device|\w+_tensor|float\d+|bfloat16|u?int\d+|bool)"
    r"|torch\._utils _rebuild_(tensor_v2|parameter)|torch\._tensor _rebuild_from_type_v2|torch\.nn\.parameter Parameter"
)
TARGETS = re.compile(r"torch\.ops\.[\w.]+|_operator\.\w+|math\.\w+|torch\.sym_\w+|torch\.(utils\._sympy\.\w+|_sym_\w+)[\w.]*")
ATTRIBUTES = {"size", "stride", "shape", "ndim", "dim", "numel", "storage_offset", "dtype", "device"}
FUNCTIONS = {"min", "max", "len", "abs", "int", "float", "floor", "ceil", "ceiling", "sqrt", "isinstance"}


def check_archive(path: Path) -> None:
    """Refuse anything but a complete `.pt2` without code.

    Raises:
        BadModel: what the file is instead, or which entry is wrong, and what to do.
    """
    with path.open("rb") as file:
        head = file.read(4)
    if head != ZIP_HEAD:
        what = "empty" if not head else "a pickle, which would run code when opened" if head.startswith(b"\x80") else "not a .pt2"
        raise BadModel(f"the file is {what}. {REMEDY}")
    try:
        with zipfile.ZipFile(path) as archive:
            if min((entry.header_offset for entry in archive.infolist()), default=0) != 0:
                # The end of the file is missing, and what was found is the archive of example inputs inside it.
                raise zipfile.BadZipFile
            root = _check_kind(archive)
            _check_entries(archive, root, path.stat().st_size)
            _check_whole(archive)
            _check_tensors(archive, root)
            _check_example_inputs(archive, root)
            _check_programs(archive, root)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, UnicodeDecodeError) as error:
        raise BadModel(f"the file begins as a .pt2 does, but is cut short or damaged. Send it again, or save it again. {REMEDY}") from error


def _check_kind(archive: zipfile.ZipFile) -> str:
    """The folder in the archive that everything is in."""
    names = set(archive.namelist())
    root = archive.namelist()[0].split("/")[0] if names else ""
    if f"{root}/archive_format" not in names:
        if f"{root}/data.pkl" in names:
            what = "a TorchScript file" if any(name.startswith(f"{root}/code/") for name in names) else "a pickle written by torch.save"
            raise BadModel(f"the file is {what}, not an exported program; it would run code when opened. {REMEDY}")
        raise BadModel(f"the file is a zip archive, but no .pt2: it has no entry 'archive_format'. {REMEDY}")
    if (kind := archive.read(f"{root}/archive_format")[:40].strip()) != b"pt2":
        raise BadModel(f"the archive says it is {kind!r}, not 'pt2'. {REMEDY}")
    return root


def _check_entries(archive: zipfile.ZipFile, root: str, file_bytes: int) -> None:
    """Every entry is one that belongs in a `.pt2`, is there once, and is as large as it says."""
    entries = archive.infolist()
    for entry in entries:
        top, _, name = entry.filename.partition("/")
        if ".." in entry.filename.split("/") or "\\" in entry.filename or top != root or entry.filename.startswith("/"):
            raise BadModel(f"the archive holds an entry that points out of it, {entry.filename!r}. {REMEDY}", entry=entry.filename)
        if re.fullmatch(r"data/(weights|constants)/[^/]+\.pt", name):
            raise BadModel(
                f"the archive holds its tensors as a pickle, {entry.filename!r}: it is of an old torch. {REMEDY}", entry=entry.filename
            )
        if not ENTRIES.fullmatch(name):
            raise BadModel(f"the archive holds {entry.filename!r}, which is no part of an exported program. {REMEDY}", entry=entry.filename)
        if entry.compress_type != zipfile.ZIP_STORED:
            raise BadModel(
                f"entry {entry.filename!r} is compressed, which torch never does: was the file packed again? {REMEDY}", entry=entry.filename
            )
    # torch finds entries without regard to case
    if len({entry.filename.lower() for entry in entries}) < len(entries) or sum(entry.file_size for entry in entries) > file_bytes:
        raise BadModel(f"the archive holds an entry twice. {REMEDY}")
    programs = sorted(entry.filename for entry in entries if entry.filename.startswith(f"{root}/models/"))
    if len(programs) != 1:
        raise BadModel(f"the archive holds {len(programs)} programs ('models/*.json'); there must be one. {REMEDY}", programs=programs)


def _check_whole(archive: zipfile.ZipFile) -> None:
    """Read every byte against its checksum."""
    if (damaged := archive.testzip()) is not None:
        raise BadModel(f"the file is damaged: the checksum of entry {damaged!r} is wrong. Send it again, or save it again.", entry=damaged)


def _check_tensors(archive: zipfile.ZipFile, root: str) -> None:
    for kind in ("weights", "constants"):
        for name in archive.namelist():
            if not (name.startswith(f"{root}/data/{kind}/") and name.endswith(f"_{kind}_config.json")):
                continue
            config = _read_json(archive, name).get("config")
            for tensor, entry in config.items() if isinstance(config, dict) else ():
                plain = isinstance(entry, dict) and entry.get("use_pickle") is False and entry.get("tensor_meta")
                if not plain or (kind == "constants" and not str(entry.get("path_name")).startswith("tensor_")):
                    raise BadModel(
                        f"{kind[:-1]} {tensor!r} is stored as a pickle, which would run code when opened: it is a tensor subclass or an "
                        f"object. Make it a plain tensor. {REMEDY}",
                        entry=tensor,
                    )


def _check_example_inputs(archive: zipfile.ZipFile, root: str) -> None:
    """The example inputs are always a pickle: allow what builds tensors, in the protocol that torch saves with."""
    for name in archive.namelist():
        if not name.startswith(f"{root}/data/sample_inputs/") or not archive.getinfo(name).file_size:
            continue
        data = BytesIO(archive.read(name))
        if not zipfile.is_zipfile(data):
            raise BadModel(f"the example inputs in {name!r} are a bare pickle, which would run code when opened. {REMEDY}", entry=name)
        with zipfile.ZipFile(data) as inner:
            for entry in inner.namelist():
                if not entry.endswith(".pkl"):
                    continue
                for operation, argument, _ in pickletools.genops(inner.read(entry)):
                    builds_tensors = operation.name == "GLOBAL" and PICKLE_GLOBALS.fullmatch(str(argument))
                    if operation.name in PICKLE_LOOKUPS and not builds_tensors:
                        raise BadModel(
                            f"the example inputs in {name!r} would run {argument or 'code'!r} when opened. Export with plain tensors as "
                            f"inputs, and save with torch's own pickle protocol. {REMEDY}",
                            entry=name,
                        )


def _check_programs(archive: zipfile.ZipFile, root: str) -> None:
    for name in archive.namelist():
        if name.startswith(f"{root}/models/"):
            for key, value in _strings(_read_json(archive, name)):
                if key == "target" and not TARGETS.fullmatch(value):
                    raise BadModel(f"the program calls {value!r}, which is no operation of torch. {REMEDY}", target=value)
                if key in ("expr_str", "guards_code") and not _only_computes(value):
                    raise BadModel(
                        f"the program's shapes hold {value[:80]!r}, which is more than arithmetic. {REMEDY}", expression=value[:80]
                    )


def _read_json(archive: zipfile.ZipFile, name: str) -> dict[str, Any]:
    if archive.getinfo(name).file_size > MAX_JSON_BYTES:
        raise BadModel(f"entry {name!r} is larger than any program's. {REMEDY}", entry=name)
    try:
        content = json.loads(archive.read(name))
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise BadModel(f"entry {name!r} is not JSON. Save the model again. {REMEDY}", entry=name)
    return content


def _strings(content: object) -> Iterator[tuple[str, str]]:
    """Every string of a JSON document, with the member it is in (directly or in a list)."""
    stack: list[tuple[str, object]] = [("", content)]
    while stack:
        key, value = stack.pop()
        if isinstance(value, str):
            yield key, value
        elif isinstance(value, list):
            stack.extend((key, item) for item in value)
        elif isinstance(value, dict):
            stack.extend(value.items())


def _only_computes(expression: str) -> bool:
    """Whether a Python expression only compares and computes sizes: names, numbers, operators, `.size()[0]`, `Mod(a, b)`."""
    try:
        tree = ast.parse(expression, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return all(_is_harmless(node) for node in ast.walk(tree))


def _is_harmless(node: ast.AST) -> bool:
    match node:
        case ast.Call(func=ast.Name(id=name)):
            return name in FUNCTIONS or (name[:1].isupper() and name.isidentifier())  # sympy's classes: Symbol, Mod, FloorDiv, Max, …
        case ast.Call(func=function):
            return isinstance(function, ast.Attribute)
        case ast.Attribute(attr=name):
            return name in ATTRIBUTES
        case ast.Name(id=name):
            return not name.startswith("__")
        case ast.Constant(value=value):
            return not isinstance(value, str) or value.replace("_", "").replace(".", "").isalnum()
        case ast.Lambda() | ast.NamedExpr() | ast.Await() | ast.Yield() | ast.YieldFrom() | ast.JoinedStr() | ast.comprehension():
            return False
        case _:
            return True
