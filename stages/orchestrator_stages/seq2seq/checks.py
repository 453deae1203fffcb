"""Refuse models of which a pipeline would not generate the same: changed classes, parts that are missing, options."""

from __future__ import annotations

from typing import Any

from torch import nn

from orchestrator import GraphError
from orchestrator_stages.generation.versions import options_in_config
from orchestrator_stages.origin import check_modules, check_unchanged

__all__ = ["check_model"]


def check_model(model: nn.Module, base: type) -> None:
    """Refuses a model that was changed, or that lacks what it generates with.

    Args:
        model: The model.
        base: Its class in transformers.

    Raises:
        GraphError: It is.
    """
    # First what a user forgets, then what was changed, then what generate() itself would miss or refuse.
    busy = next((name or "itself" for name, module in model.named_modules() if module.training), None)
    if busy is not None:
        raise GraphError(
            f"The model is in training mode ({busy}); call model.eval() first.", model=model, part=busy
        )
    check_modules(model, "the model")
    check_unchanged(model, base, "the model")
    if getattr(model, "generation_config", None) is None:
        raise GraphError("The model has no generation_config; load it with one.", part="generation_config")
    head: Any = getattr(model, "get_output_embeddings", lambda: None)()
    if head is None:
        raise GraphError("The model has no projection to its vocabulary.", part="lm_head")
    config: Any = model.config
    decoder: Any = getattr(config, "decoder", None)
    if getattr(decoder, "add_cross_attention", True) is False:
        raise GraphError(
            f"The {decoder.model_type} decoder has no cross-attention; make it with add_cross_attention=True.",
            option="add_cross_attention",
        )
    _check_attention(model)
    legacy = options_in_config(model)
    if legacy:
        raise GraphError(
            f"model.config says how to generate ({', '.join(legacy)}), which generate() refuses as well; put it into "
            "model.generation_config.",
            option=next(iter(legacy)),
        )


def _check_attention(model: nn.Module) -> None:
    for module in model.modules():
        implementation = getattr(getattr(module, "config", None), "_attn_implementation", None)
        if implementation not in (None, "eager", "sdpa"):
            raise GraphError(
                f"The model computes attention with {implementation!r}, which reads no cache of fixed size. Call "
                "model.set_attn_implementation('sdpa').",
                option="attn_implementation",
            )
