"""A program's graph as data: reading it builds a graph of known operators and nothing else.

A file is safetensors: its tensors are the constants of the program, and its metadata holds the graph as JSON. There is
no pickle in it, no name of a Python object is looked up, and no text of it becomes part of generated code: nodes are
numbered, and an operator is one of those that :func:`~orchestrator_neuron.emulated.operators.operator_of` knows.

    graphs     each a list of nodes; the first is the program's, others are branches and bodies that nodes refer to
    node       [op, name, arguments, keywords]; other nodes are spoken of by their number
    takes      the arguments of the program's graph: ["weight", name], ["constant", number] or ["input"]
    constants  [shape, strides, dtype] of each; its content is a tensor of bytes, named by its number
"""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch.export.graph_signature import InputKind

from orchestrator.specs import dtype_name
from orchestrator_neuron.emulated.operators import name_of, operator_of

__all__ = ["StoredGraph", "UnstorableError", "dump", "load"]

_KEY = "graph"
_WEIGHTS = (InputKind.PARAMETER, InputKind.BUFFER)
_LAYOUTS = {"strided": torch.strided}
_MEMORY_FORMATS = {
    "contiguous_format": torch.contiguous_format,
    "preserve_format": torch.preserve_format,
    "channels_last": torch.channels_last,
    "channels_last_3d": torch.channels_last_3d,
}
_NAMES: dict[Any, tuple[str, str]] = {
    **{value: ("layout", name) for name, value in _LAYOUTS.items()},
    **{value: ("memory_format", name) for name, value in _MEMORY_FORMATS.items()},
}


class UnstorableError(Exception):
    """A graph holds something that has no form in a file."""


@dataclass(frozen=True)
class StoredGraph:
    """The content of a file.

    Attributes:
        module: The graph: takes ``takes`` in order, gives a sequence of tensors.
        takes: ``("weight", name)``, ``("constant", number)`` or ``("input", "")`` for each of its arguments.
        constants: Its constants, by number.
        outputs: How many tensors it gives.
    """

    module: torch.fx.GraphModule
    takes: tuple[tuple[str, str], ...]
    constants: Mapping[str, torch.Tensor]
    outputs: int


def dump(export: torch.export.ExportedProgram) -> bytes:
    """Returns an exported program as the content of a file; of its weights only the names.

    Raises:
        UnstorableError: It takes, calls or holds something that has no form in a file.
    """
    takes: list[list[str]] = []
    tensors: dict[str, torch.Tensor] = {}
    layouts: list[list[Any]] = []
    # Arguments in the order of the graph: whoever runs it puts weights and constants in these places. Weights go by
    # name; constants go along as bytes, since a graph may ask for their strides.
    for item in export.graph_signature.input_specs:
        if item.kind in _WEIGHTS:
            takes.append(["weight", str(item.target)])
        elif item.kind is InputKind.USER_INPUT:
            takes.append(["input", ""])
        elif item.kind is InputKind.CONSTANT_TENSOR:
            constant = export.constants[str(item.target)]
            number = str(len(layouts))
            takes.append(["constant", number])
            tensors[number] = _bytes_of(constant)
            layouts.append([list(constant.shape), list(constant.stride()), dtype_name(constant.dtype)])
        else:
            raise UnstorableError(f"it holds an object of torch's own, {item.target!r}")
    writer = _GraphFileWriter()
    writer.add(export.graph_module)
    body = {"takes": takes, "constants": layouts, "graphs": writer.graphs}
    return save_tensors(tensors, {_KEY: json.dumps(body, allow_nan=False)})


def load(data: bytes) -> StoredGraph:
    """Reads the content of a file.

    Raises:
        Exception: It is damaged, or names an operator that is not known; which kind depends on where.
    """
    tensors = load_tensors(data)
    body = json.loads(_metadata(data)[_KEY])
    constants = {
        str(number): _constant(tensors[str(number)], *form) for number, form in enumerate(body["constants"])
    }
    takes = tuple((str(kind), str(name)) for kind, name in body["takes"])
    module, outputs = _GraphFileReader(body["graphs"]).module(0)
    if sum(node.op == "placeholder" for node in module.graph.nodes) != len(takes):
        raise ValueError("it does not take what it says")
    return StoredGraph(module, takes, constants, outputs)


def _metadata(data: bytes) -> dict[str, str]:
    """The metadata of a safetensors file that has been read: 8 bytes give the length of the JSON in front."""
    length = int.from_bytes(data[:8], "little")
    metadata: dict[str, str] = json.loads(data[8 : 8 + length])["__metadata__"]
    return metadata


def _bytes_of(constant: torch.Tensor) -> torch.Tensor:
    """The elements between a constant's first and its last, in the order of memory."""
    if constant.layout is not torch.strided or constant.is_quantized or constant.device.type != "cpu":
        raise UnstorableError(f"it holds a constant that is no plain tensor on the CPU: {constant.layout}")
    # A conjugate or negative view is resolved: flags are no part of a file.
    constant = constant.detach().resolve_conj().resolve_neg()
    last = sum((size - 1) * step for size, step in zip(constant.shape, constant.stride(), strict=True))
    whole = constant.as_strided((last + 1 if constant.numel() else 0,), (1,))
    return whole.clone().view(torch.uint8)


def _constant(content: torch.Tensor, shape: list[int], strides: list[int], dtype: str) -> torch.Tensor:
    # as_strided refuses a shape and strides that reach beyond the content.
    return content.clone().view(_dtype(dtype)).as_strided(shape, strides)


def _dtype(name: str) -> torch.dtype:
    dtype = vars(torch).get(name)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{name!r} is no dtype")
    return dtype


class _GraphFileWriter:
    """Graphs to plain data."""

    def __init__(self) -> None:
        self.graphs: list[list[list[Any]]] = []

    def add(self, module: torch.fx.GraphModule) -> int:
        """Adds a graph and those it refers to; returns its number."""
        number = len(self.graphs)
        nodes: list[list[Any]] = []
        self.graphs.append(nodes)
        numbers: dict[torch.fx.Node, int] = {}
        for node in module.graph.nodes:
            numbers[node] = len(nodes)
            nodes.append(self._node(module, node, numbers))
        return number

    def _node(
        self, module: torch.fx.GraphModule, node: torch.fx.Node, numbers: Mapping[torch.fx.Node, int]
    ) -> list[Any]:
        # A graph within it, of a branch or a body, is the one attribute that a node may refer to: anything else would
        # be an object without a form.
        if node.op == "placeholder":
            return ["takes", "", [], []]
        if node.op == "get_attr":
            part = module
            for name in str(node.target).split("."):
                part = getattr(part, name)
            if not isinstance(part, torch.fx.GraphModule):
                raise UnstorableError(f"it refers to a {type(part).__name__}, {node.target}")
            return ["graph", self.add(part), [], []]
        arguments = [_plain(item, numbers) for item in node.args]
        keywords = [[name, _plain(item, numbers)] for name, item in node.kwargs.items()]
        if node.op == "output":
            return ["gives", "", arguments, keywords]
        if node.target is operator.getitem:
            return ["item", "", arguments, keywords]
        operation = name_of(node.target)
        if operation is None:
            raise UnstorableError(f"{getattr(node.target, '__name__', node.target)} has no form in a file")
        return ["call", operation, arguments, keywords]


def _plain(value: Any, numbers: Mapping[torch.fx.Node, int]) -> Any:
    """Returns an argument as JSON; a value that JSON lacks is a list that begins with its kind."""
    # By exact type: a subclass of int or str, such as an enum, would come back as something else.
    if value is None or type(value) in (bool, int, str):
        return value
    if isinstance(value, torch.fx.Node):
        return ["node", numbers[value]]
    if type(value) is float:
        return ["float", value.hex()]
    if type(value) is complex:
        return ["complex", value.real.hex(), value.imag.hex()]
    if isinstance(value, dict) and all(type(name) is str for name in value):
        return ["dict", *[[name, _plain(item, numbers)] for name, item in value.items()]]
    if isinstance(value, (list, tuple)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return [kind, *[_plain(item, numbers) for item in value]]
    if isinstance(value, torch.dtype):
        return ["dtype", dtype_name(value)]
    if isinstance(value, torch.device) and value.type == "cpu":
        return ["device"]
    if isinstance(value, (torch.layout, torch.memory_format)) and value in _NAMES:
        return list(_NAMES[value])
    raise UnstorableError(f"it has an argument that has no form in a file, {value!r}")


class _GraphFileReader:
    """Plain data to graphs."""

    def __init__(self, graphs: list[list[list[Any]]]) -> None:
        self._graphs = graphs
        self._modules: dict[int, tuple[torch.fx.GraphModule, int]] = {}

    def module(self, number: int) -> tuple[torch.fx.GraphModule, int]:
        """Returns a graph and how many things it gives; a graph refers to later ones only."""
        if number not in self._modules:
            self._modules[number] = self._build(number)
        return self._modules[number]

    def _build(self, number: int) -> tuple[torch.fx.GraphModule, int]:
        """Builds a graph; returns it with the number of its outputs.

        Raises:
            Exception: It is damaged, or names an operator that is not known.
        """
        # Nodes are numbered by their place, and names are made here, so no text of the file becomes code. A graph
        # refers to later ones only, which rules out circles.
        graph = torch.fx.Graph()
        root = torch.nn.Module()
        nodes: list[torch.fx.Node] = []
        outputs = -1
        for at, (op, what, arguments, keywords) in enumerate(self._graphs[number]):
            name = f"n{at}"
            args = tuple(self._value(item, nodes) for item in arguments)
            kwargs = {_identifier(key): self._value(item, nodes) for key, item in keywords}
            if op == "takes":
                nodes.append(graph.placeholder(name))
            elif op == "graph":
                if not number < what < len(self._graphs):
                    raise ValueError("a graph refers to one before it")
                setattr(root, name, self.module(what)[0])
                nodes.append(graph.create_node("get_attr", name, name=name))
            elif op == "gives":
                outputs = len(args[0]) if isinstance(args[0], (list, tuple)) else 1
                nodes.append(graph.output(args[0]))
            else:
                target = operator.getitem if op == "item" else operator_of(what)
                nodes.append(graph.create_node("call_function", target, args, kwargs, name=name))
        if outputs < 0:
            raise ValueError("a graph gives nothing")
        return torch.fx.GraphModule(root, graph, "Program"), outputs

    def _value(self, value: Any, nodes: list[torch.fx.Node]) -> Any:
        if not isinstance(value, list):
            return value
        kind, *rest = value
        if kind in ("list", "tuple"):
            items = [self._value(item, nodes) for item in rest]
            return tuple(items) if kind == "tuple" else items
        if kind == "dict":
            return {str(name): self._value(item, nodes) for name, item in rest}
        if kind == "node":
            return nodes[rest[0]]
        return _SCALARS[kind](*rest)


def _identifier(name: str) -> str:
    """A keyword of an operator is written into the code of its graph, so it must be one."""
    if not (isinstance(name, str) and name.isidentifier()):
        raise ValueError(f"{name!r} is no keyword")
    return name


_SCALARS: dict[str, Callable[..., Any]] = {
    "float": float.fromhex,
    "complex": lambda real, imaginary: complex(float.fromhex(real), float.fromhex(imaginary)),
    "dtype": _dtype,
    "device": lambda: torch.device("cpu"),
    "layout": _LAYOUTS.__getitem__,
    "memory_format": _MEMORY_FORMATS.__getitem__,
}
