"""Refuse models that generate nothing, or that were changed so that what they compute cannot be told."""

from __future__ import annotations

import contextlib
import linecache
import traceback
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from orchestrator import GraphError, OrchestratorError
from orchestrator_stages.generation.versions import options_in_config
from orchestrator_stages.origin import check_modules

__all__ = ["check_generates", "following"]


def check_generates(model: Any) -> None:
    """Refuses what is no model of transformers that generates as it was loaded.

    Args:
        model: The model.

    Raises:
        GraphError: It is none, is wrapped, in training mode, or lacks what it generates with.
    """
    # What is no model comes first, then what stands around it, then what was done to it, then what it lacks.
    if (
        not isinstance(model, nn.Module)
        or getattr(getattr(model, "config", None), "model_type", None) is None
    ):
        raise GraphError(
            f"from_transformers takes a loaded model of transformers, not {model!r:.80}.", model=model
        )
    name = type(model).__name__
    if hasattr(model, "peft_config"):
        raise GraphError(
            f"{name} is a model in a wrapper of peft; call its merge_and_unload().", model=model, part="peft"
        )
    if not callable(getattr(model, "generate", None)) or getattr(model, "generation_config", None) is None:
        raise GraphError(
            f"{name} generates nothing: it has no generate() or no generation_config. Take the class of its family "
            "that ends in ForCausalLM or ForConditionalGeneration.",
            model=model,
            part="generation_config",
        )
    busy = next((place or "itself" for place, module in model.named_modules() if module.training), None)
    if busy is not None:
        raise GraphError(
            f"The model is in training mode ({busy}); call model.eval() first.", model=model, part=busy
        )
    check_modules(model, "the model")
    if getattr(model, "get_output_embeddings", lambda: None)() is None:
        raise GraphError("The model has no projection to its vocabulary.", part="lm_head")
    legacy = options_in_config(model)
    if legacy:
        raise GraphError(
            f"model.config says how to generate ({', '.join(legacy)}), which generate() refuses as well; put it into "
            "model.generation_config.",
            option=next(iter(legacy)),
        )


@contextlib.contextmanager
def following(model: Any) -> Iterator[None]:
    """Refuses a model whose forward ends in an error where it is run over a cache of fixed size.

    Args:
        model: The model.

    Raises:
        GraphError: It did, and the message says in which.
    """
    # What is refused in words already stays; a forward of the library may raise anything else. Where in the library it
    # did says what stands in the way, and what a family would have to replace.
    try:
        yield
    except OrchestratorError:
        raise
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise GraphError(
            f"The forward of {type(model).__name__} cannot be followed: it looks at the values of tensors "
            f"({error.func}), which are not known before it runs{_place(error)}. {_way_out(model)}",
            model=model,
        ) from error
    except Exception as error:
        reason = (str(error).strip().splitlines() or ["no reason"])[0].rstrip(".")
        raise GraphError(
            f"The forward of {type(model).__name__} cannot be followed over a cache of fixed size: "
            f"{type(error).__name__}: {reason:.300}{_place(error)}. {_way_out(model)}",
            model=model,
        ) from error


def _place(error: BaseException) -> str:
    """Where in the sources of a model an error began: the innermost forward, and its line."""
    frames = [
        (frame, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if ".models." in str(frame.f_globals.get("__name__"))
        and isinstance(frame.f_locals.get("self"), nn.Module)
    ]
    if not frames:
        return ""
    frame, line = frames[-1]
    code = linecache.getline(frame.f_code.co_filename, line).strip()
    return f", in {type(frame.f_locals['self']).__name__}.{frame.f_code.co_name}: `{code:.120}`"


def _way_out(model: Any) -> str:
    """What a user can do about a forward that cannot be followed."""
    return (
        f"Either register_family({model.config.model_type!r}, Family(prepare=...)) puts something that needs no value "
        "in its place, or the model's own generate() runs in a host stage."
    )
