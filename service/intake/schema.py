"""The document of a program: the members it may have, by torch's schema 8, without those that carry objects, graphs or code.

Members that are not named here are dropped; a choice (`as_…`) that is not named is refused.
"""

from typing import Annotated, Any, Literal, NotRequired

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, StringConstraints, TypeAdapter
from typing_extensions import TypedDict

from service.intake.expressions import canonical_expression
from service.intake.operators import kept_trace
from service.intake.trees import canonical_tree

MAX_NODES = 100_000
MAX_AXES = 32


def _one_member(choice: dict[str, Any]) -> dict[str, Any]:
    if len(choice) != 1:
        raise ValueError(f"one of the choices must be given, not {sorted(choice)}")
    return choice


def _root_call(calls: Any) -> Any:
    """The call of the program itself; the others are of its submodules, for people."""
    return calls[:1] if isinstance(calls, list) else calls


# Names of values become names of variables in generated source text.
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=500)]
Path = Annotated[str, StringConstraints(pattern=r"^([A-Za-z0-9]|_[A-Za-z0-9_]?)[A-Za-z0-9_]*(\.[A-Za-z0-9_]+)*$", max_length=1000)]
Text = Annotated[str, StringConstraints(max_length=2000)]
Int = Annotated[int, Field(strict=True, ge=-(2**63), lt=2**63)]
Size = Annotated[int, Field(strict=True, ge=0, lt=2**48)]
Float = Annotated[float, Field(allow_inf_nan=False)] | Literal["Infinity", "-Infinity", "NaN"]
Bool = Annotated[bool, Field(strict=True)]
Dtype = Annotated[int, Field(strict=True, ge=1, le=35)]
Expression = Annotated[str, AfterValidator(canonical_expression)]
Tree = Annotated[str, AfterValidator(canonical_tree)]
CHOICE = ConfigDict(extra="forbid")


class Device(TypedDict):
    type: Literal["cpu", "cuda"]
    index: Annotated[int, Field(ge=0, lt=64)] | None


class _Hint(TypedDict, total=False):
    __pydantic_config__ = CHOICE  # type: ignore[misc]
    as_int: Int
    as_float: Float
    as_bool: Bool


class _Expression(TypedDict):
    expr_str: Expression
    hint: NotRequired[Annotated[_Hint, AfterValidator(_one_member)] | None]


class _Value(TypedDict, total=False):
    """A size, number or truth value: known, or an expression."""

    __pydantic_config__ = CHOICE  # type: ignore[misc]
    as_expr: _Expression
    as_int: Int
    as_float: Float
    as_bool: Bool


Value = Annotated[_Value, AfterValidator(_one_member)]


class _Extent(TypedDict, total=False):
    __pydantic_config__ = CHOICE  # type: ignore[misc]
    as_expr: _Expression
    as_int: Size


Extent = Annotated[_Extent, AfterValidator(_one_member)]


class TensorMeta(TypedDict):
    dtype: Dtype
    sizes: Annotated[list[Extent], Field(max_length=MAX_AXES)]
    requires_grad: Bool
    device: Device
    strides: Annotated[list[Extent], Field(max_length=MAX_AXES)]
    storage_offset: Extent
    layout: Literal[7]  # strided: the others hold indices


class TensorName(TypedDict):
    name: Name


class _Sized(TypedDict, total=False):
    __pydantic_config__ = CHOICE  # type: ignore[misc]
    as_name: Name
    as_int: Int
    as_float: Float
    as_bool: Bool


Sized = Annotated[_Sized, AfterValidator(_one_member)]


class _MaybeTensor(TypedDict, total=False):
    __pydantic_config__ = CHOICE  # type: ignore[misc]
    as_tensor: TensorName
    as_none: Bool


MaybeTensor = Annotated[_MaybeTensor, AfterValidator(_one_member)]


class _Complex(TypedDict):
    real: Float
    imag: Float


class _Argument(TypedDict, total=False):
    __pydantic_config__ = CHOICE  # type: ignore[misc]
    as_none: Bool
    as_tensor: TensorName
    as_tensors: list[TensorName]
    as_int: Int
    as_ints: list[Int]
    as_float: Float
    as_floats: list[Float]
    as_string: Text
    as_strings: list[Text]
    as_sym_int: Sized
    as_sym_ints: list[Sized]
    as_sym_float: Sized
    as_sym_floats: list[Sized]
    as_sym_bool: Sized
    as_sym_bools: list[Sized]
    as_scalar_type: Dtype
    as_memory_format: Annotated[int, Field(ge=1, le=4)]
    as_layout: Literal[7]
    as_device: Device
    as_bool: Bool
    as_bools: list[Bool]
    as_optional_tensor: MaybeTensor
    as_optional_tensors: list[MaybeTensor]
    as_complex: _Complex
    as_nested_tensors: list[list[TensorName]]
    as_int_lists: list[list[Int]]
    as_float_lists: list[list[Float]]


Argument = Annotated[_Argument, AfterValidator(_one_member)]


class _NamedArgument(TypedDict):
    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z_]?[A-Za-z0-9_]*$", max_length=100)]
    arg: Argument
    kind: NotRequired[Annotated[int, Field(ge=0, le=2)] | None]


class _Metadata(TypedDict, total=False):
    stack_trace: Annotated[str, StringConstraints(max_length=100_000), AfterValidator(kept_trace)]


class Node(TypedDict):
    target: Text
    inputs: list[_NamedArgument]
    outputs: list[Argument]
    metadata: _Metadata
    name: NotRequired[Name | None]


class Graph(TypedDict):
    inputs: list[Argument]
    outputs: list[Argument]
    nodes: Annotated[list[Node], Field(max_length=MAX_NODES)]
    tensor_values: dict[Name, TensorMeta]
    sym_int_values: dict[Name, Value]
    sym_bool_values: dict[Name, Value]
    sym_float_values: NotRequired[dict[Name, Value]]
    is_single_tensor_return: Bool


class _ParameterInput(TypedDict):
    arg: TensorName
    parameter_name: Path


class _BufferInput(TypedDict):
    arg: TensorName
    buffer_name: Path
    persistent: Bool


class _ConstantInput(TypedDict):
    arg: TensorName
    tensor_constant_name: Path


class _UserArgument(TypedDict):
    arg: Argument


class _Constant(TypedDict, total=False):
    __pydantic_config__ = CHOICE  # type: ignore[misc]
    as_none: Bool
    as_int: Int
    as_float: Float
    as_string: Text
    as_bool: Bool


class _FixedInput(TypedDict):
    name: Name
    value: Annotated[_Constant, AfterValidator(_one_member)]


class _InputSpec(TypedDict, total=False):
    __pydantic_config__ = CHOICE  # type: ignore[misc]
    user_input: _UserArgument
    parameter: _ParameterInput
    buffer: _BufferInput
    tensor_constant: _ConstantInput
    constant_input: _FixedInput


class _TensorOutput(TypedDict):
    arg: TensorName


class _BufferOutput(TypedDict):
    arg: TensorName
    buffer_name: Path


class _ParameterOutput(TypedDict):
    arg: TensorName
    parameter_name: Path


class _InputOutput(TypedDict):
    arg: TensorName
    user_input_name: Name


class _OutputSpec(TypedDict, total=False):
    __pydantic_config__ = CHOICE  # type: ignore[misc]
    user_output: _UserArgument
    loss_output: _TensorOutput
    buffer_mutation: _BufferOutput
    parameter_mutation: _ParameterOutput
    user_input_mutation: _InputOutput


class _Signature(TypedDict):
    input_specs: list[Annotated[_InputSpec, AfterValidator(_one_member)]]
    output_specs: list[Annotated[_OutputSpec, AfterValidator(_one_member)]]


class _CallSignature(TypedDict):
    inputs: Annotated[list[None], BeforeValidator(lambda given: [])]  # of submodules only
    outputs: Annotated[list[None], BeforeValidator(lambda given: [])]
    in_spec: Tree
    out_spec: Tree
    forward_arg_names: NotRequired[list[Name] | None]


class _RootCall(TypedDict):
    fqn: Literal[""]
    signature: _CallSignature


class _GraphModule(TypedDict):
    graph: Graph
    signature: _Signature
    module_call_graph: Annotated[list[_RootCall], Field(min_length=1), BeforeValidator(_root_call)]


class _Range(TypedDict):
    min_val: Int | None
    max_val: Int | None


class _Version(TypedDict):
    major: Literal[8]
    minor: Annotated[int, Field(ge=0, lt=1000)]


class Program(TypedDict):
    graph_module: _GraphModule
    opset_version: dict[Literal["aten"], Annotated[int, Field(ge=0, lt=1000)]]
    range_constraints: dict[Annotated[str, StringConstraints(pattern=r"^[a-z]{1,4}[0-9]{1,6}$")], _Range]
    schema_version: _Version
    verifiers: list[Literal["TRAINING", "ATEN"]]
    torch_version: Annotated[str, StringConstraints(pattern=r"^[0-9a-z.+<=]{1,60}$")]


PROGRAM: TypeAdapter[Program] = TypeAdapter(Program)
