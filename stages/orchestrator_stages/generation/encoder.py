"""What a model makes of one picture or recording, as a graph of its own: up to the features that stand for its tokens.

A model with an encoder in front of its decoder puts features where a prompt has tokens of a kind, and hands the result
to the decoder. So the model's own forward is run on one picture whose prompt has nothing but such tokens, up to the
call of the decoder: what the decoder would read are the features. The run is traced; what does not depend on the
picture, such as the grid of its patches, is worked out then and becomes a constant.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from orchestrator import GraphError
from orchestrator_stages.generation.items import ItemKind
from orchestrator_stages.generation.masks import BroadcastMasks
from orchestrator_stages.generation.tree import own_tree

__all__ = ["FeatureGraph", "ItemEncoder", "trace_features"]

DEEP = "deepstack_visual_embeds"
"""The argument of a decoder that has features for its layers, besides those in place of tokens."""


class DecoderCallError(Exception):
    """The decoder is about to be called.

    Args:
        decoder: The decoder.
        arguments: With what.
    """

    def __init__(self, decoder: nn.Module, arguments: Mapping[str, Any]) -> None:
        super().__init__("the decoder is called")
        self.decoder = decoder
        self.arguments = arguments

    def features(self) -> Tensor:
        """What the decoder would read of the one prompt ``[tokens, width]``: that for its layers behind the rest.

        Raises:
            GraphError: It is handed more than features.
        """
        deep = self.arguments.get(DEEP)
        if deep is None:
            embeds: Tensor = self.arguments["inputs_embeds"]
            return embeds[0]
        if not hasattr(self.decoder, "_deepstack_process"):
            raise GraphError(f"{type(self.decoder).__name__} takes {DEEP} in a way that is not known here.")
        return torch.cat([self.arguments["inputs_embeds"][0], *deep], -1)


class FeatureGraph:
    """What is traced of an encoder.

    Attributes:
        stages: One graph, or two: up to the projector, and the projector with what follows it.
        shape: Of the features of one item, ``(tokens, width)``.
        dtype: Of the features.
    """

    def __init__(
        self, stages: tuple[fx.GraphModule, ...], shape: tuple[int, int], dtype: torch.dtype
    ) -> None:
        self.stages = stages
        self.shape = shape
        self.dtype = dtype


class ItemEncoder(nn.Module):
    """Runs a graph for each item of a batch.

    Args:
        graph: Of one item.
    """

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__()
        self.graph = graph
        self.eval()

    def forward(self, *items: Tensor) -> Tensor:
        """Returns what the graph gives, items in front.

        Args:
            items: ``[items, ...]``: for each item what the graph takes.
        """
        results = [self.graph(*(value[place] for value in items)) for place in range(items[0].shape[0])]
        return torch.stack(results)


def _watch_decoder(model: Any) -> None:
    """Makes the call of a decoder raise :class:`DecoderCallError`; a decoder has the embeddings of text.

    Of a model with an encoder of texts, that reads what pictures are put into.
    """
    embedding = model.get_input_embeddings()

    def stop(decoder: nn.Module, _: Any, arguments: dict[str, Any]) -> None:
        if isinstance(arguments.get("inputs_embeds"), Tensor):
            raise DecoderCallError(decoder, arguments)

    has_encoder = getattr(model.config, "is_encoder_decoder", False)
    reader = model.get_encoder() if has_encoder else None
    for module in model.modules():
        if module is reader or (module is not model and any(part is embedding for part in module.modules())):
            module.register_forward_pre_hook(stop, with_kwargs=True)


def _projector(model: Any) -> nn.Module | None:
    """The module between an encoder and the decoder, if it is one by name."""
    names = ("projector", "connector", "merger", "projection")
    for owner in (getattr(model, "model", None), model):
        for name, child in owner.named_children() if owner is not None else ():
            if any(word in name for word in names) and any(True for _ in child.parameters()):
                part: nn.Module = child
                return part
    return None


def take_deep_features(model: Any) -> None:
    """Makes a decoder take features for its layers behind the embeddings of tokens, ``[batch, tokens, widths]``.

    They are zero where no features are, so they are added everywhere: which places these are is no matter of shapes.

    Args:
        model: A tree of one's own.
    """
    width = model.get_input_embeddings().weight.shape[1]

    def part(_: nn.Module, values: Any, arguments: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        embeds = arguments.get("inputs_embeds")
        if embeds is None or embeds.shape[-1] == width:
            return None
        embeds, *deep = embeds.split(width, -1)
        return values, {**arguments, "inputs_embeds": embeds, DEEP: deep, "visual_pos_masks": embeds}

    for module in model.modules():
        if hasattr(module, "_deepstack_process"):
            module._deepstack_process = lambda states, _, features: states + features
            module.register_forward_pre_hook(part, with_kwargs=True)


def trace_features(model: Any, kind: ItemKind) -> FeatureGraph:
    """Traces what a model makes of one item.

    Args:
        model: The model.
        kind: What an item is.

    Raises:
        GraphError: The model's forward cannot be traced so far.
    """
    # A tree of its own, where the call of the decoder ends the run and a mark tells where the projector begins.
    tree: Any = own_tree(model)
    _watch_decoder(tree)
    projector = _projector(tree)
    if projector is not None:
        projector.register_forward_pre_hook(lambda _, values: (torch.ops.aten.alias(values[0]), *values[1:]))
    items, ids = kind.values, torch.full((1, kind.count), kind.token, dtype=torch.int64)
    constants = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **kind.constants}
    types = dict.fromkeys(kind.types, torch.ones_like(ids))

    def features(*values: Tensor) -> Tensor:
        try:
            tree(**constants, **dict(zip(items, values, strict=True)), use_cache=False)
        except DecoderCallError as call:
            return call.features()
        raise GraphError(
            f"The forward of {type(model).__name__} calls no decoder with inputs_embeds=, so what it makes of "
            f"{', '.join(items)} cannot be told from the rest.",
            model=model,
        )

    # Which tokens stand for items is told by the tokens; some forwards have to be told twice.
    graph: fx.GraphModule | None = None
    errors: list[Exception] = []
    for more in ({}, types):
        constants |= more
        try:
            with torch.no_grad(), warnings.catch_warnings(), BroadcastMasks():
                warnings.simplefilter("ignore")
                result = features(*items.values())
                graph = make_fx(features, pre_dispatch=True, _error_on_data_dependent_ops=False)(
                    *items.values()
                )
            break
        except Exception as error:
            errors.append(error)
    if graph is None:
        cause = errors[-1]
        if isinstance(cause, GraphError):
            raise cause
        raise GraphError(
            f"What {type(model).__name__} makes of {', '.join(items)} cannot be traced: "
            f"{type(cause).__name__}: {str(cause).splitlines()[0] if str(cause) else ''}",
            model=model,
        ) from cause
    _simplify(graph, tuple(items.values()))
    return FeatureGraph(_parts(graph), (result.shape[0], result.shape[1]), result.dtype)


class MaskValues(fx.Interpreter):
    """Runs a graph once for the values of the masks by which it picks rows.

    Attributes:
        masks: By node.
    """

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.masks: dict[fx.Node, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Runs a node."""
        value = super().run_node(n)
        if isinstance(value, Tensor) and value.dtype is torch.bool and any(map(_picks_rows, n.users)):
            self.masks[n] = value
        return value


def _picks_rows(node: fx.Node) -> bool:
    return node.target in (torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default)


def _pick_by_place(graph: fx.GraphModule, items: tuple[Tensor, ...]) -> None:
    """Makes rows that a mask picks rows that are picked by their places: which they are is as in the example."""
    values = MaskValues(graph)
    values.run(*items)
    for number, (mask, value) in enumerate(values.masks.items()):
        places = value.nonzero(as_tuple=True)
        for user in filter(_picks_rows, list(mask.users)):
            indices: list[Any] = []
            with graph.graph.inserting_before(user):
                for index in user.args[1]:  # type: ignore[union-attr]
                    if index is not mask:
                        indices.append(index)
                        continue
                    for dim, place in enumerate(places):
                        name = f"places_{number}_{dim}"
                        graph.register_buffer(name, place, persistent=False)
                        indices.append(graph.graph.get_attr(name))
            user.args = (user.args[0], indices, *user.args[2:])


def _simplify(graph: fx.GraphModule, items: tuple[Tensor, ...]) -> None:
    """Takes the text out of a graph: where all tokens are replaced, nothing is left of what they were."""
    # The graph runs without gradients as a whole. What a forward switches on the way was recorded under no_grad, so
    # it would switch them off for good.
    for node in list(graph.graph.nodes):
        if node.target is torch._C._set_grad_enabled:
            graph.graph.erase_node(node)
    graph.recompile()
    _pick_by_place(graph, items)
    for node in list(graph.graph.nodes):
        if node.target is torch.ops.aten.masked_scatter.default:
            text, _, source = node.args
            shape, source_shape = text.meta["tensor_meta"].shape, source.meta["tensor_meta"].shape
            if shape.numel() == source_shape.numel():
                with graph.graph.inserting_before(node):
                    replacement = graph.graph.call_function(
                        torch.ops.aten.reshape.default, (source, list(shape))
                    )
                node.replace_all_uses_with(replacement)
                replacement.meta = node.meta
    graph.graph.eliminate_dead_code()
    _fold(graph)
    graph.recompile()


def _fold(graph: fx.GraphModule) -> None:
    """Works out what depends on neither an item nor a weight, and keeps it as a buffer: it moves with the module."""
    values: dict[fx.Node, Any] = {}
    for node in list(graph.graph.nodes):
        if node.op == "get_attr":
            constant = getattr(graph, str(node.target))
            if not isinstance(constant, nn.Parameter):
                values[node] = constant
        elif node.op == "call_function" and all(arg in values for arg in node.all_input_nodes):
            arguments = fx.node.map_arg(node.args, lambda arg: values[arg])
            options = fx.node.map_arg(node.kwargs, lambda arg: values[arg])
            values[node] = node.target(*arguments, **options)
    for number, (node, value) in enumerate(values.items()):
        if not isinstance(value, Tensor) or not any(user not in values for user in node.users):
            continue
        name = f"constant_{number}"
        graph.register_buffer(name, value.detach().clone(), persistent=False)
        with graph.graph.inserting_before(node):
            buffer = graph.graph.get_attr(name)
        node.replace_all_uses_with(buffer, lambda user: user not in values)
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()


def _parts(graph: fx.GraphModule) -> tuple[fx.GraphModule, ...]:
    """Cuts a graph where the projector begins, if what follows needs nothing else of the encoder."""
    nodes = list(graph.graph.nodes)
    marks = [node for node in nodes if node.target is torch.ops.aten.alias.default]
    if len(marks) != 1:
        return (graph,)
    # Behind the mark are the nodes that it leads to, and weights and constants that they read.
    mark = marks[0]
    behind = {mark}
    for node in nodes:
        if any(argument in behind for argument in node.all_input_nodes):
            behind.add(node)
    needs = {argument for node in behind - {mark} for argument in node.all_input_nodes} - behind
    if any(argument.op != "get_attr" for argument in needs):
        return (graph,)
    before = [node for node in nodes if node not in behind and node.op != "output"]
    after = [node for node in nodes if node in needs or (node in behind and node not in (mark, nodes[-1]))]
    return _part(graph, before, mark.args[0], None), _part(graph, after, nodes[-1].args[0], mark)


def _part(graph: fx.GraphModule, nodes: list[fx.Node], result: Any, entry: fx.Node | None) -> fx.GraphModule:
    """Some nodes as a graph of their own, with an input in place of one."""
    part = fx.Graph()
    copies = {} if entry is None else {entry: part.placeholder("states")}
    for node in nodes:
        copies[node] = part.node_copy(node, copies.__getitem__)
    part.output(fx.node.map_arg(result, copies.__getitem__))
    part.eliminate_dead_code()
    return fx.GraphModule(graph, part)
