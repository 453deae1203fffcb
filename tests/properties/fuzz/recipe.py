"""Recipes: random pipelines as data, and the script that a recipe is.

A script makes its stages, builds the pipeline (``build``), and says the same by hand (``by_hand``), once for the
pipeline and once for each body. Values are variables ``v0``, ``v1`` and so on, unique in a recipe, so that a value can
be replaced by another one wherever it is read.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.properties.fuzz import hosts, zoo

__all__ = ["Block", "Input", "Op", "Recipe", "StageDef", "script", "standalone"]

#: Names of values by the port that they are for.
Fed = dict[str, str]


@dataclass
class StageDef:
    """A stage: the variable of its object, the object as code, and what ``add`` is told besides.

    Attributes:
        hand: The callable by hand as code, where it is not the object.
        ports: Keys of what it gives, if that is a dict.
    """

    name: str
    var: str
    target: str
    more: dict[str, str] = field(default_factory=dict)
    hand: str = ""
    ports: tuple[Any, ...] = ()


@dataclass
class Input:
    """An input of a block: the spec as code."""

    name: str
    value: str
    spec: str
    optional: bool = False


@dataclass
class Op:
    """One thing that a block does.

    Attributes:
        kind: ``call``, ``sub``, ``loop``, ``map`` or ``when``.
        name: Of the loop, map, branch or inlined pipeline.
        stage: Of a call: index into the stages of its block.
        args: Of a call: values, or constants as code.
        named: Of a call: keyword arguments likewise.
        outs: Variables it gives.
        body: What is repeated, or inlined.
        fed: By role (``carry``, ``each``, ``inputs``, ``over``, ``otherwise``): port to value.
        extra: Other keyword arguments as code.
        results: Ports of the body that it returns, in the order of ``outs``.
    """

    kind: str
    outs: list[str]
    name: str = ""
    stage: int = -1
    args: list[str] = field(default_factory=list)
    named: dict[str, str] = field(default_factory=dict)
    body: Block | None = None
    fed: dict[str, Fed] = field(default_factory=dict)
    extra: dict[str, str] = field(default_factory=dict)
    results: list[str] = field(default_factory=list)

    def reads(self) -> Iterator[str]:
        """Values that it reads."""
        yield from self.args
        yield from self.named.values()
        for fed in self.fed.values():
            yield from fed.values()
        if "condition" in self.extra:
            yield self.extra["condition"]

    def replace(self, old: str, new: str) -> None:
        """Reads another value instead of one."""
        self.args = [new if arg == old else arg for arg in self.args]
        self.named = {name: new if arg == old else arg for name, arg in self.named.items()}
        self.fed = {
            role: {port: new if arg == old else arg for port, arg in fed.items()}
            for role, fed in self.fed.items()
        }
        if self.extra.get("condition") == old:
            self.extra["condition"] = new


@dataclass
class Block:
    """A pipeline: the whole one, or a body."""

    name: str
    inputs: list[Input] = field(default_factory=list)
    stages: list[StageDef] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    outputs: list[list[str]] = field(default_factory=list)

    def blocks(self) -> Iterator[Block]:
        """Itself and all bodies in it, inner ones first."""
        for op in self.ops:
            if op.body is not None:
                yield from op.body.blocks()
        yield self


@dataclass
class Recipe:
    """A pipeline with how it is planned and what it is asked.

    Attributes:
        seed: What it was made from.
        plan: Keyword arguments of ``plan``.
        requests: Input to value as code, one dict for each request.
        sizes: Sizes of the named dims in each request.
        through_json: The plan is read from its own text, and bound.
        forced: An edge that could stay on its device goes over the host.
        streamed: What was right is asked again, in a stream.
    """

    seed: int
    main: Block
    plan: dict[str, Any]
    requests: list[dict[str, str]]
    sizes: list[dict[str, int]]
    through_json: bool = False
    forced: bool = False
    streamed: bool = False


def script(recipe: Recipe) -> str:
    """Returns the code of a recipe: ``build(new)``, ``by_hand(request)``, ``PLAN`` and ``REQUESTS``."""
    lines: list[str] = []
    functions: list[str] = []
    for number, block in enumerate(recipe.main.blocks()):
        name = "" if block is recipe.main else f"body_{number}"
        for stage in block.stages:
            lines.append(f"{stage.var} = {stage.target}")
            if stage.hand:
                lines.append(f"{stage.var}_by_hand = {stage.hand}")
        functions += ["", "", *_build(block, name or "build", recipe.main)]
        functions += ["", "", *_by_hand(block, f"{name}_by_hand" if name else "by_hand", recipe.main)]
    plan = ", ".join(f"{name}={value!r}" for name, value in recipe.plan.items())
    requests = [
        "    {" + ", ".join(f"{name!r}: {code}" for name, code in request.items()) + "},"
        for request in recipe.requests
    ]
    return "\n".join([*lines, *functions, "", "", f"PLAN = dict({plan})", "REQUESTS = [", *requests, "]", ""])


def _number(main: Block, body: Block | None) -> str:
    return f"body_{next(number for number, block in enumerate(main.blocks()) if block is body)}"


def _build(block: Block, name: str, main: Block) -> list[str]:
    lines = [f"def {name}(new):", f"    p = new({block.name!r})"]
    for item in block.inputs:
        more = ", optional=True" if item.optional else ""
        lines.append(f"    {item.value} = p.input({item.name!r}, {item.spec}{more})")
    added: set[Any] = set()
    for op in block.ops:
        outs = ", ".join(op.outs)
        if op.kind == "call":
            stage = block.stages[op.stage]
            if stage.var not in added:
                added.add(stage.var)
                lines.append(f"    add_{stage.var} = {_add(stage)}")
            lines.append(f"    {outs} = add_{stage.var}({_arguments(op)})")
            if stage.ports and "outputs" not in stage.more:
                parts = ", ".join(f"{op.outs[0]}[{str(port)!r}]" for port in stage.ports)
                lines[-1] = f"    {op.outs[0]} = add_{stage.var}({_arguments(op)})"
                lines.append(f"    {outs} = {parts}")
        elif op.kind == "sub":
            if op.name not in added:
                added.add(op.name)
                lines.append(
                    f"    add_{_number(main, op.body)} = p.add({op.name!r}, {_number(main, op.body)}(new))"
                )
            fed = [f"**{{{_ports(op.fed['inputs'])}}}"] if op.fed["inputs"] else []
            lines.append(f"    {outs} = add_{_number(main, op.body)}({', '.join(fed)})")
        else:
            given = [f"{role}={{{_ports(fed)}}}" for role, fed in op.fed.items() if fed]
            given += [f"{word}={code}" for word, code in op.extra.items()]
            lines.append(
                f"    {outs} = p.{op.kind}({op.name!r}, {_number(main, op.body)}(new), {', '.join(given)})"
            )
    lines += [f"    p.output({port!r}, {value})" for port, value in block.outputs]
    return [*lines, "    return p"]


def _add(stage: StageDef) -> str:
    more = "".join(f", {name}={code}" for name, code in stage.more.items())
    return f"p.add({stage.name!r}, {stage.var}{more})"


def _arguments(op: Op) -> str:
    return ", ".join([*op.args, *(f"{name}={code}" for name, code in op.named.items())])


def _ports(fed: Fed) -> str:
    return ", ".join(f"{port!r}: {value}" for port, value in fed.items())


def _by_hand(block: Block, name: str, main: Block) -> list[str]:
    lines = [f"def {name}(given):"]
    for item in block.inputs:
        read = f"given.get({item.name!r})" if item.optional else f"given[{item.name!r}]"
        lines.append(f"    {item.value} = {read}")
    lines += [f"    {line}" for op in block.ops for line in _line_by_hand(block, op, main)]
    return [*lines, f"    return {{{', '.join(f'{port!r}: {value}' for port, value in block.outputs)}}}"]


def _line_by_hand(block: Block, op: Op, main: Block) -> Iterable[str]:
    outs = ", ".join(op.outs)
    if op.kind == "call":
        stage = block.stages[op.stage]
        call = f"{stage.var}{'_by_hand' if stage.hand else ''}({_arguments(op)})"
        if stage.ports:
            call = f"pick({call}, {', '.join(map(repr, stage.ports))})"
        yield f"{outs} = {call}"
        return
    body = f"{_number(main, op.body)}_by_hand"
    fed = {role: f"{{{_ports(ports)}}}" for role, ports in op.fed.items()}
    if op.kind == "sub":
        yield f"{outs} = pick({body}({fed['inputs']}), {', '.join(map(repr, op.results))})"
    elif op.kind == "loop":
        get = op.extra.get
        told = ", ".join(
            (get("until", "None"), get("max_steps", "None"), get("check_every", "1"), get("collect", "()"))
        )
        yield f"{outs} = loop_by_hand({body}, {fed['carry']}, {fed['each']}, {fed['inputs']}, {told})"
    elif op.kind == "map":
        names = f"({', '.join(map(repr, op.results))},)"
        yield f"{outs} = map_by_hand({body}, {fed['over']}, {fed['inputs']}, {names})"
    else:
        condition = op.extra.get("condition", "True")
        yield f"{outs} = when_by_hand({body}, {fed['inputs']}, {fed['otherwise']}, {condition})"
    if len(op.outs) == 1:
        yield f"({outs},) = {outs}"


def standalone(recipe: Recipe, headline: str) -> str:
    """Returns a script that needs nothing of this folder: it exits 1 while a request is not as by hand."""
    code = script(recipe)
    return "\n".join(
        [
            f'"""{headline}"""',
            "import copy",
            "import math",
            "import sys",
            "from collections import OrderedDict",
            "from collections.abc import Callable, Mapping",
            "from typing import Any",
            "import torch",
            "from torch import nn",
            "from orchestrator import Dim, ModelWrapper, Pipeline, TensorSpec",
            "from orchestrator.errors import OrchestratorError, StageError",
            "",
            *_used(code),
            code,
            _MAIN,
        ]
    )


def _used(code: str) -> list[str]:
    """The definitions of the zoo that code uses, and those that they use."""
    known: dict[str, str] = {}
    for source in (inspect.getsource(hosts), inspect.getsource(zoo)):
        for node in ast.parse(source).body:
            target = getattr(node, "targets", [getattr(node, "target", None)])[0]
            name = getattr(node, "name", None) or getattr(target, "id", None)
            if name:
                known[name] = ast.get_source_segment(source, node) or ""
    wanted: set[str] = set()
    todo = [code]
    while todo:
        names = {node.id for node in ast.walk(ast.parse(todo.pop())) if isinstance(node, ast.Name)}
        new = names & known.keys() - wanted
        wanted |= new
        todo += [known[name] for name in new]
    return [text + "\n\n" for name, text in known.items() if name in wanted]


#: The end of a standalone script.
_MAIN = """
wrong = False
try:
    session = build(Pipeline).plan(**PLAN).load()
except OrchestratorError as error:
    sys.exit(f"refused: {error}")
for request in REQUESTS:
    try:
        with torch.no_grad():
            wanted = by_hand(copy.deepcopy(request))
    except Exception as error:
        wanted = error
    try:
        given = session.run(request)
    except OrchestratorError as error:
        print(f"{type(error).__name__}: {error}")
        wrong |= isinstance(error, StageError) and not isinstance(wanted, Exception)
        continue
    print("by hand", wanted)
    print("session", given)
    wrong |= repr(given) != repr(wanted)
sys.exit(wrong)
"""
