"""States of an application where they are: a program writes them itself, instead of making a second one of each.

A program is a function: what it does to a state it does to a copy, and its result is what the state is afterwards. A
compiler for a device that is told that both are the same memory leaves the copy out. So does this, in a graph:

- a copy of a whole state of which the state itself is not read afterwards *is* the state;
- padding that becomes a state is written into it, the border first and then what it surrounds;
- any other result is laid down in its state as soon as nothing else of the program needs either.

What fits none of these stays as it is, and whoever runs the program copies it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch.fx import Graph, GraphModule, Node

__all__ = ["write_states"]

aten = torch.ops.aten


def write_states(module: GraphModule, states: Mapping[int, int]) -> None:
    """Lets a program write its states in place, as far as that changes nothing of what it gives.

    Args:
        module: The graph of the program; it is changed.
        states: Of each argument that is a state, which of the results it is afterwards.
    """
    graph = module.graph
    # What a graph within it may do to a tensor is not followed.
    if not states or graph.find_nodes(op="get_attr"):
        return
    placeholders, output = graph.find_nodes(op="placeholder"), graph.output_node()
    results = list(output.args[0])  # type: ignore[arg-type]
    memory = _StateMemory(graph)
    for argument, number in states.items():
        result = results[number]
        # What two states become, or a state becomes and something else is given as, has to be there twice anyway.
        if results.count(result) == 1 and memory.write(placeholders[argument], result):
            results[number] = placeholders[argument]
    output.args = (results,)
    graph.lint()
    module.recompile()


class _StateMemory:
    """Whose memory the nodes of a graph are.

    Args:
        graph: The graph.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.order = {node: at for at, node in enumerate(graph.nodes)}
        self.roots: dict[Node, Node] = {}
        for node in graph.nodes:
            source = _source(node)
            self.roots[node] = node if source is None else self.roots[source]

    def write(self, state: Node, result: Node) -> bool:
        """Writes a result into its state, where the program does not read any more what that was.

        Args:
            state: An argument.
            result: What it is afterwards.

        Returns:
            Whether it did; from then on the result is the argument.
        """
        # What was written in place is what it was before that; of any other view, not all may be there.
        result = _written(result)
        if result.op != "call_function" or self.roots[result] is not result:
            return False
        last_read = max((self.order[user] for user in self._users(state) if user is not result), default=-1)
        is_unread = last_read < self.order[result]
        if is_unread and result.target is aten.clone.default and result.args == (state,):
            return self._replace(result, state)
        if is_unread and _is_border(result):
            with self.graph.inserting_before(result):
                self._write_border(state, result)
            return self._replace(result, state)
        users = [user for user in self._users(result) if user.op != "output"]
        last = max((result, *users), key=self.order.__getitem__)
        if last_read > self.order[last]:
            return False
        with self.graph.inserting_after(last):
            copy = self.graph.call_function(aten.copy_.default, (state, result))
        self.order[copy] = self.order[last]
        return True

    def _users(self, root: Node) -> list[Node]:
        """What reads or writes the memory of a node."""
        return [user for node, other in self.roots.items() if other is root for user in node.users]

    def _replace(self, result: Node, state: Node) -> bool:
        result.replace_all_uses_with(state)
        self.graph.erase_node(result)
        del self.roots[result]
        return True

    def _write_border(self, state: Node, padding: Node) -> None:
        """Writes a border and what it surrounds into a state."""
        inner, pads, *more = padding.args
        assert isinstance(pads, Sequence)
        nodes = [
            self.graph.call_function(aten.fill_.Scalar, (state, (more[1] if len(more) > 1 else None) or 0))
        ]
        place = state
        for at in range(0, len(pads), 2):
            end = -pads[at + 1] if pads[at + 1] else None  # type: ignore[operator]
            place = self.graph.call_function(aten.slice.Tensor, (place, -1 - at // 2, pads[at], end))
            nodes.append(place)
        nodes.append(self.graph.call_function(aten.copy_.default, (place, inner)))
        self.order |= dict.fromkeys(nodes, self.order[padding])


def _written(node: Node) -> Node:
    """The tensor that a node gives as it came, but for what was written into it."""
    schema, source = getattr(node.target, "_schema", None), _source(node)
    if schema is None or source is None or not schema.returns[0].alias_info.is_write:
        return node
    return _written(source)


def _source(node: Node) -> Node | None:
    """An argument whose memory a node may be; of an operator without a schema, the first."""
    schema = getattr(node.target, "_schema", None)
    if node.op != "call_function":
        return None
    if schema is None:
        return next(iter(node.all_input_nodes), None)
    if all(item.alias_info is None for item in schema.returns):
        return None
    pairs = zip(schema.arguments, node.args, strict=False)
    return next(
        (value for item, value in pairs if item.alias_info is not None and isinstance(value, Node)), None
    )


def _is_border(node: Node) -> bool:
    """Whether a node is a tensor within a border, of which nothing is cut off."""
    if node.target is not aten.pad.default or node.args[2:3] not in ((), ("constant",)) or node.kwargs:
        return False
    pads = node.args[1]
    return isinstance(pads, Sequence) and all(isinstance(size, int) and size >= 0 for size in pads)
