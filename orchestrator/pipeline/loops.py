"""Adding a loop: its ports are checked against the inputs and outputs of its body, then the body is inlined."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from orchestrator.errors import GraphError, nearest
from orchestrator.graph import CONDITION, Graph, Loop, NodeKey, next_port, stacked_port, until_port
from orchestrator.pipeline.graph_builder import GraphBuilder, Value, Values
from orchestrator.pipeline.inline import copy_calls, with_constraint

__all__ = ["LoopPorts", "check_fed", "mapping", "names_of"]


class LoopPorts:
    """The values that enter a loop and the ports that leave it; arguments as in :meth:`Pipeline.loop`.

    Raises:
        GraphError: One of them is wrong.
    """

    def __init__(
        self,
        name: str,
        carry: Any,
        each: Any,
        inputs: Any,
        until: str | None,
        condition: Value | None,
        max_steps: int | None,
        check_every: int,
        collect: Any,
        outputs: Any,
    ) -> None:
        self.name = name
        self.carry = mapping(name, "carry", carry)
        self.each = mapping(name, "each", each)
        self.inputs = mapping(name, "inputs", inputs)
        self.until = until or ""
        self.condition = condition
        self.collect = names_of(name, "collect", collect)
        self.max_steps = max_steps
        self.check_every = check_every
        self._outputs = outputs

    def add_to(self, pipeline: GraphBuilder, graph: Graph) -> Value:
        """Adds the loop with its body, and returns its outputs."""
        # All is checked before anything is added.
        self._check(graph)
        loop = Loop(
            self.name,
            tuple(self.carry),
            tuple(self.each),
            self.collect,
            self.until,
            self.max_steps,
            self.check_every,
            condition=self.condition is not None,
        )
        result_ports = self._result_ports(loop)
        pipeline.add_loop(loop)
        enter, exit_ = NodeKey("enter", self.name), NodeKey("exit", self.name)
        # Into the loop: a carry meets the body's spec before it enters, since every iteration hands it on in that
        # form; of what is sliced only the slice meets it.
        if self.condition is not None:
            condition = pipeline.as_value(self.condition, f"condition of {self.name!r}")
            pipeline.add_edge(condition, enter, CONDITION)
        body_inputs: dict[str, Value] = {}
        for port, start in {**self.carry, **self.each}.items():
            value = pipeline.as_value(start, f"port '{self.name}.{port}'")
            spec, inside = graph.inputs[port], Value(pipeline, enter, port)
            pipeline.add_edge(with_constraint(value, spec) if port in self.carry else value, enter, port)
            body_inputs[port] = inside if port in self.carry else with_constraint(inside, spec)
        # Invariants do not enter: they are edges from outside straight into the body.
        for port, invariant in self.inputs.items():
            value = pipeline.as_value(invariant, f"port '{self.name}.{port}'")
            body_inputs[port] = with_constraint(value, graph.inputs[port])
        # The body itself, then what one iteration gives to the next, to the stacks and to the end.
        body_outputs = copy_calls(pipeline, self.name, graph, body_inputs, {}, self.name)
        for port in self.carry:
            pipeline.add_edge(body_outputs[port], exit_, next_port(port))
        for port in self.collect:
            pipeline.add_edge(body_outputs[port], exit_, stacked_port(port))
        if self.until:
            pipeline.add_edge(body_outputs[self.until], exit_, until_port(self.until))
        results = {name: Value(pipeline, exit_, port) for name, port in result_ports.items()}
        return Values.or_one(results)

    def _check(self, graph: Graph) -> None:
        # Every name is a port of the body ...
        check_fed(self.name, graph, {"carry": self.carry, "each": self.each, "inputs": self.inputs})
        for what, names in (("carry", self.carry), ("collect", self.collect)):
            self._check_outputs(graph, what, names)
        if self.until:
            self._check_outputs(graph, "until", (self.until,))
        elif self.condition is not None:
            raise GraphError(
                f"condition= of loop {self.name!r} is for a loop that until= ends. For one that runs a number of times "
                f"or not at all, put it into the body of a branch: when(..., condition=...).",
                loop=self.name,
            )
        # ... every number is one ...
        for what, number, least in (
            ("max_steps", self.max_steps, 0),
            ("check_every", self.check_every, 1),
        ):
            wrong = isinstance(number, bool) or not isinstance(number, int) or number < least
            if wrong and not (what == "max_steps" and number is None):
                raise GraphError(
                    f"{what} of loop {self.name!r} is an int of at least {least}, not {number!r}.",
                    loop=self.name,
                )
        # ... and the loop ends, and gives something.
        if not self.each and self.max_steps is None:
            raise GraphError(
                f"Loop {self.name!r} has no end: give it each={{...}}, one slice for each iteration, or max_steps=.",
                loop=self.name,
            )
        if not self.carry and not self.collect:
            raise GraphError(
                f"Loop {self.name!r} gives nothing: it has no carry and no collect.", loop=self.name
            )

    def _check_outputs(self, graph: Graph, what: str, names: Iterable[str]) -> None:
        for port in names:
            if port not in graph.outputs:
                raise GraphError(
                    f"{what} of loop {self.name!r} names {port!r}, which is no output of its body {graph.name!r} "
                    f"({', '.join(graph.outputs)}).{nearest(port, graph.outputs)}",
                    loop=self.name,
                    port=port,
                )

    def _result_ports(self, loop: Loop) -> dict[str, str]:
        """Names of what the loop returns to ports; a plain name is a carry where there is one of that name."""
        # What may be asked for: "ids" and "token" where only one of the two holds them, "token[]" always the stack.
        ports = {**{name: stacked_port(name) for name in loop.collect}, **{name: name for name in loop.carry}}
        ports |= {stacked_port(name): stacked_port(name) for name in loop.collect}
        if self._outputs is None:
            names = tuple(map(stacked_port, loop.collect)) or loop.carry
        else:
            names = names_of(self.name, "outputs", self._outputs)
        for name in names:
            if name not in ports:
                raise GraphError(
                    f"outputs of loop {self.name!r} names {name!r}, which it neither carries nor collects."
                    f"{nearest(name, ports)}",
                    loop=self.name,
                    port=name,
                )
        if not names:
            raise GraphError(f"outputs of loop {self.name!r} is empty; leave it out.", loop=self.name)
        return {name.removesuffix("[]") if self._outputs is None else name: ports[name] for name in names}


def check_fed(name: str, graph: Graph, groups: Mapping[str, Mapping[str, Any]]) -> None:
    """Makes sure that every input of a body is fed once, an optional one once at most.

    Raises:
        GraphError: It is not, or another one is named.
    """
    # Each port with the argument that feeds it, so that an error can name both.
    words: dict[str, str] = {}
    for what, values in groups.items():
        for port in values:
            if port not in graph.inputs:
                raise GraphError(
                    f"{what} of {name!r} names {port!r}, which is no input of its body {graph.name!r} "
                    f"({', '.join(graph.inputs) or 'it has none'}).{nearest(port, graph.inputs)}",
                    loop=name,
                    port=port,
                )
            if port in words:
                raise GraphError(
                    f"The port '{name}.{port}' is fed twice: by {words[port]} and by {what}.",
                    loop=name,
                    port=port,
                )
            words[port] = what
    missing = [port for port in graph.inputs if port not in words and port not in graph.optional]
    if missing:
        raise GraphError(
            f"The input port '{name}.{missing[0]}' is never fed; name it in {', '.join(groups)}.",
            loop=name,
            port=missing[0],
        )


def mapping(name: str, what: str, argument: Any) -> dict[str, Any]:
    """Returns an argument that is a dict of ports to values.

    Raises:
        GraphError: It is none.
    """
    if argument is not None and not isinstance(argument, Mapping):
        raise GraphError(f"{what} of {name!r} is a dict of port to value, not {argument!r}.", loop=name)
    return dict(argument or {})


def names_of(name: str, what: str, argument: Sequence[str] | str) -> tuple[str, ...]:
    """Returns an argument that is a sequence of names, each once.

    Raises:
        GraphError: It is none.
    """
    names = (argument,) if isinstance(argument, str) else tuple(argument)
    if not all(isinstance(port, str) for port in names) or len(set(names)) < len(names):
        raise GraphError(f"{what} of {name!r} is a tuple of names, each once, not {argument!r}.", loop=name)
    return names
