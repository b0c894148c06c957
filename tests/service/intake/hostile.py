"""Model files that somebody might send, each with what it should be told: edits of a real one, by name."""

import io
import json
import pickle
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

Entries = dict[str, bytes]
Edit = Callable[[Entries], None]


class Canary:
    """What a pickle can do: call anything with anything. This one leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


@dataclass(frozen=True)
class Hostile:
    """An edit, and a pattern of the refusal's words; None for what is left out, so that the rest is harmless."""

    edit: Edit
    why: str | None


def rewritten(source: Path, target: Path, edit: Edit) -> Path:
    """A copy of an archive with its members edited."""
    with zipfile.ZipFile(source) as archive:
        entries = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    edit(entries)
    with zipfile.ZipFile(target, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, data in entries.items():
            archive.writestr(name.removeprefix("!") if name.startswith("!") else f"model/{name}", data)
    return target


def saved(value: object) -> bytes:
    data = io.BytesIO()
    torch.save(value, data)
    return data.getvalue()


def add(name: str, data: bytes) -> Edit:
    return lambda entries: entries.update({name: data})


def edit_json(name: str, edit: Callable[[Any], None]) -> Edit:
    def edit_entries(entries: Entries) -> None:
        content = json.loads(entries[name])
        edit(content)
        entries[name] = json.dumps(content).encode()

    return edit_entries


def program(edit: Callable[[Any], None]) -> Edit:
    return edit_json("models/model.json", edit)


def graph(edit: Callable[[Any], None]) -> Edit:
    return program(lambda content: edit(content["graph_module"]["graph"]))


def target(name: str) -> Edit:
    return graph(lambda content: content["nodes"][-1].update(target=name))


def argument(value: dict[str, Any]) -> Edit:
    return graph(lambda content: content["nodes"][-1]["inputs"].append({"name": "extra", "arg": value, "kind": 1}))


def size(expression: str) -> Edit:
    """An expression as the size of a tensor."""

    def edit(content: Any) -> None:
        next(iter(content["tensor_values"].values()))["sizes"] = [{"as_expr": {"expr_str": expression, "hint": {"as_int": 4}}}]

    return graph(edit)


def tree(kind: str, context: Any, children: int = 1) -> Edit:
    leaf = {"type": None, "context": None, "children_spec": []}
    text = json.dumps([1, {"type": kind, "context": context, "children_spec": [leaf] * children}])
    return program(lambda content: content["graph_module"]["module_call_graph"][0]["signature"].update(out_spec=text))


def weight(**meta: Any) -> Edit:
    """Change what the first weight claims to be."""
    numbers = {name: [{"as_int": n} for n in value] if isinstance(value, list) else value for name, value in meta.items()}

    def edit(content: Any) -> None:
        next(iter(content["config"].values()))["tensor_meta"].update(numbers)

    return edit_json("data/weights/model_weights_config.json", edit)


def payload(kind: str, **members: Any) -> Callable[[Any], None]:
    return lambda content: next(iter(content["config"].values())).update(members)


def both(*edits: Edit) -> Edit:
    def edit_entries(entries: Entries) -> None:
        for edit in edits:
            edit(entries)

    return edit_entries


def rename(old: Callable[[Any], str], new: str) -> Edit:
    """Give a name of the program another spelling, wherever it stands."""

    def edit_entries(entries: Entries) -> None:
        for name in ("models/model.json", "data/weights/model_weights_config.json"):
            before = json.dumps(old(json.loads(entries["models/model.json"])))
            entries[name] = entries[name].replace(before.encode(), json.dumps(new).encode())

    return edit_entries


def nested_tree(depth: int) -> str:
    node: dict[str, Any] = {"type": None, "context": None, "children_spec": []}
    for _ in range(depth):
        node = {"type": "builtins.tuple", "context": "null", "children_spec": [node]}
    return json.dumps([1, node])


def many_nodes(count: int) -> Edit:
    node = {"target": "t", "inputs": [], "outputs": [], "metadata": {}}
    return graph(lambda content: content.update(nodes=[node] * count))


def hostile_files(canary: Path) -> dict[str, Hostile]:
    """By name. `canary` is the file that none of them may leave."""
    code = Canary(canary)
    python = f"open({str(canary)!r}, 'w')"
    weights, constants = "data/weights/model_weights_config.json", "data/constants/model_constants_config.json"
    opaque = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
    enum = json.dumps({"__enum__": True, "fqn": "this:x", "name": "y"})
    user_input: Callable[[Any], str] = lambda content: content["graph_module"]["graph"]["inputs"][-1]["as_tensor"]["name"]  # noqa: E731
    parameter: Callable[[Any], str] = lambda content: content["graph_module"]["signature"]["input_specs"][0]["parameter"]["parameter_name"]  # noqa: E731
    return {
        # pickles
        "sample inputs that run code": Hostile(add("data/sample_inputs/model.pt", saved(((code,), {}))), None),
        "sample inputs that are a bare pickle": Hostile(add("data/sample_inputs/model.pt", pickle.dumps(((code,), {}))), None),
        "a weight that is a pickle": Hostile(
            both(edit_json(weights, payload("weights", use_pickle=True)), add("data/weights/weight_0", saved(code))), "stored as a pickle"
        ),
        "weights in one pickle": Hostile(add("data/weights/model.pt", saved(code)), "tensors as a pickle"),
        "a constant that is a pickle": Hostile(
            both(
                edit_json(constants, lambda c: c["config"].update(x={**opaque, "path_name": "tensor_9"})),
                add("data/constants/tensor_9", saved(code)),
            ),
            "stored as a pickle",
        ),
        "constants in one pickle": Hostile(add("data/constants/model.pt", saved(code)), "tensors as a pickle"),
        "an opaque object": Hostile(
            both(edit_json(constants, lambda c: c["config"].update(x=opaque)), add("data/constants/opaque_obj_0", pickle.dumps(code))),
            "an object",
        ),
        "an opaque object under a tensor's name": Hostile(
            both(edit_json(constants, lambda c: c["config"].update(x=opaque)), add("data/constants/tensor_0", pickle.dumps(code))),
            "stored as a pickle or an object",
        ),
        "a script object": Hostile(add("data/constants/custom_obj_0", saved(code)), "an object"),
        "a compiled library": Hostile(add("data/aotinductor/model/model.so", b"\x7fELF"), "no part of an exported program"),
        # Python in sizes, guards, trees and names
        "a size that opens a file": Hostile(size(python), "more than arithmetic"),
        "a size that imports": Hostile(size("__import__('os').getcwd()"), "more than arithmetic"),
        "a size that looks for classes": Hostile(size("().__class__.__base__.__subclasses__()"), "more than arithmetic"),
        "a size that is a function": Hostile(size("(lambda: 0)()"), "more than arithmetic"),
        "a size that compiles": Hostile(size("lambdify([], 'x')"), "more than arithmetic"),
        "a symbol that is code": Hostile(size(f"Symbol({python!r})"), "more than arithmetic"),
        "a size higher than any number": Hostile(size("Pow(Integer(9), Pow(Integer(9), Integer(9)))"), "more than arithmetic"),
        "a size of many powers": Hostile(size("Pow(" * 9 + "Integer(9)" + ", Integer(64))" * 9), "more than arithmetic"),
        "a size without end": Hostile(size("Add(" + "Integer(1)," * 5000 + ")"), "characters"),
        "a size nested beyond reason": Hostile(size("Not(" * 700 + "1" + ")" * 700), "no expression|more than arithmetic"),
        "a value that opens a file": Hostile(
            graph(lambda content: content["sym_int_values"].update(x={"as_expr": {"expr_str": python, "hint": None}})),
            "more than arithmetic",
        ),
        "a guard that opens a file": Hostile(program(lambda content: content.update(guards_code=[python])), None),
        "a tree that imports an enumeration": Hostile(tree("builtins.tuple", enum), None),
        "keys that import an enumeration": Hostile(tree("builtins.dict", f"[{enum}]"), "keys that are no names"),
        "a tree that imports a factory": Hostile(
            tree("collections.defaultdict", {"default_factory_module": "this", "default_factory_name": "x", "dict_context": []}),
            "takes or gives",
        ),
        "a tree of named tuples": Hostile(tree("collections.namedtuple", "this.x"), "takes or gives"),
        "a tree nested beyond reason": Hostile(
            program(lambda content: content["graph_module"]["module_call_graph"][0]["signature"].update(in_spec=nested_tree(300))),
            "too deeply",
        ),
        "an input whose name is code": Hostile(rename(user_input, f"x=[{python}]"), "String should match pattern"),
        "a parameter whose name is code": Hostile(rename(parameter, f'a"+{python}+"'), "String should match pattern"),
        # what the program calls
        "a call of the system": Hostile(target("os.system"), "no operation of torch"),
        "a call of torch.load": Hostile(target("torch.load"), "no operation of torch"),
        "a call through torch's modules": Hostile(target("torch.serialization.os.system"), "no operation of torch"),
        "a call of a getter": Hostile(target("_operator.attrgetter"), "no operation of torch"),
        "an operator that opens files": Hostile(target("torch.ops.aten.from_file.default"), "reaches out"),
        "an operator that takes indices on trust": Hostile(target("torch.ops.aten._sparse_coo_tensor_unsafe.default"), "reaches out"),
        "an operator that swaps storages": Hostile(target("torch.ops.aten.set_.source_Tensor"), "reaches out"),
        "an operator's class": Hostile(target("torch.ops.aten.add.__class__"), "no operation of torch"),
        "a custom operator": Hostile(target("torch.ops.mine.run.default"), "no operation of torch"),
        "a graph in the graph": Hostile(target("torch.ops.higher_order.cond"), "a graph inside the graph"),
        "an object as an argument": Hostile(argument({"as_custom_obj": {"name": "x", "class_fqn": "y"}}), "as_custom_obj"),
        "an operator as an argument": Hostile(argument({"as_operator": "torch.load"}), "as_operator"),
        "a graph as an argument": Hostile(argument({"as_graph": {"name": "x", "graph": {}}}), "as_graph"),
        "two values in one argument": Hostile(argument({"as_int": 1, "as_bool": True}), "one of the choices"),
        "a number beyond 64 bits": Hostile(argument({"as_int": 10**30}), "less than"),
        # tensors
        "terabytes by a stride of 0": Hostile(weight(sizes=[2**40], strides=[0]), "claims"),
        "terabytes of nothing": Hostile(
            both(weight(sizes=[2**20, 2**20], strides=[2**20, 1]), add("data/weights/weight_0", b"")), "claims"
        ),
        "sizes whose product overflows": Hostile(weight(sizes=[2**47, 2**47], strides=[1, 1]), "claims"),
        "a size beyond all memory": Hostile(weight(sizes=[2**60], strides=[1]), "less than"),
        "an offset behind the end": Hostile(weight(storage_offset={"as_int": 2**40}), "claims"),
        "a negative stride": Hostile(weight(sizes=[2], strides=[-1]), "greater than or equal to 0"),
        "a thousand axes": Hostile(weight(sizes=[1] * 1000, strides=[1] * 1000), "at most 32"),
        "sizes without strides": Hostile(weight(strides=[]), "strides"),
        "an unknown dtype": Hostile(weight(dtype=20), "dtype"),
        "sparse with wild indices": Hostile(weight(layout=1), "layout"),
        "a tensor of no device": Hostile(weight(device={"type": "meta", "index": None}), "device"),
        "NaN": Hostile(add("data/weights/weight_0", b"\xff" * 864), "NaN or infinity"),
        "bytes that are no whole number of elements": Hostile(add("data/weights/weight_0", b"\0" * 867), "claims"),
        # the document
        "a million nodes": Hostile(many_nodes(10**6), "larger than|at most 100000"),
        "many nodes in a small document": Hostile(many_nodes(200_000), "at most 100000"),
        "lists without end": Hostile(add("models/model.json", b"[" * 10**6), "not JSON"),
        "NaN as a number": Hostile(add("models/model.json", b'{"graph_module": NaN}'), "should be an object"),
        "another schema": Hostile(program(lambda content: content["schema_version"].update(major=9)), "schema_version"),
        "a second program": Hostile(add("models/second.json", b"{}"), "no part of an exported program"),
        # the archive
        "a name that points out": Hostile(add("models/../../../etc/passwd", b""), "points out of it"),
        "an absolute name": Hostile(add("!/etc/passwd", b""), "points out of it"),
        "a name with backslashes": Hostile(add("extra\\..\\..\\x", b""), "points out of it"),
        "a name in other letters": Hostile(add("Data/sample_inputs/model.pt", b""), "no part of an exported program|twice"),
        "another kind of archive": Hostile(add("archive_format", b"torchscript"), "not 'pt2'"),
        "tensors in big-endian order": Hostile(add("byteorder", b"big"), "little-endian"),
        "an archive of an old torch": Hostile(
            lambda entries: (entries.clear(), entries.update({"!version": b"8.8", "!serialized_exported_program.json": b"{}"}))[0],
            "no .pt2",
        ),
    }
