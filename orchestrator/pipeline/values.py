"""What stands for an output while a graph is drawn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from orchestrator.errors import GraphError, nearest
from orchestrator.graph import NodeKey
from orchestrator.specs import TensorSpec
from orchestrator.stage import Stage

if TYPE_CHECKING:
    from orchestrator.pipeline.builder import Pipeline

__all__ = ["Value", "Values"]


class Value:
    """Stands for one output while a graph is drawn; ``value["port"]`` picks an output of a stage that gives a dict."""

    __slots__ = ("node", "owner", "port", "stage", "via")

    def __init__(
        self,
        owner: Pipeline,
        node: NodeKey,
        port: str,
        stage: Stage | None = None,
        via: tuple[TensorSpec, ...] = (),
    ) -> None:
        self.owner = owner
        self.node = node
        self.port = port
        self.stage = stage
        self.via = via

    def __getitem__(self, port: str) -> Value:
        if not isinstance(port, str) or self.stage is None:
            raise GraphError(f"{self!r} has no port {port!r}.", port=port)
        known = [item.name for item in self.stage.outputs]
        if known and port not in known:
            raise GraphError(f"{self.node.name!r} has no output {port!r}.{nearest(port, known)}", port=port)
        return Value(self.owner, self.node, port, self.stage, self.via)

    def __iter__(self) -> Iterator[Value]:
        raise GraphError(
            f"{self!r} is one output. If its stage gives a tuple, name its parts: add(..., outputs=('a', 'b')).",
            call=self.node.name,
        )

    def __repr__(self) -> str:
        return f"<Value {self.node.name}.{self.port}>" if self.port else f"<Value {self.node.name}>"


class Values(tuple["Value", ...]):
    """The outputs of a call with several: a tuple that also takes a port's name."""

    names: tuple[str, ...]

    @classmethod
    def of(cls, pairs: Mapping[str, Value]) -> Values:
        """Makes it from names and values."""
        made = cls(pairs.values())
        made.names = tuple(pairs)
        return made

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            if key not in self.names:
                raise GraphError(f"There is no output {key!r}.{nearest(key, self.names)}", port=key)
            return super().__getitem__(self.names.index(key))
        return super().__getitem__(key)
