"""A small legal configuration of any class of transformers that generates, made of its default one by names of fields.

Sizes are set only where a configuration has them, in its parts as well; what depends on the number of layers gets as
many entries as there are layers, one of each kind. What no rule of names can know is in :mod:`small_overrides`.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from tests.stages.generation import tiny_items
from tests.stages.generation.small_fields import (
    FOR_OTHER_LAYERS,
    HEADS,
    LAYER_COUNTS,
    LAYERS,
    PAD,
    SIZES,
    START,
    WIDTH,
)
from tests.stages.generation.small_overrides import ITEMS, OVERRIDES

transformers: Any = importlib.import_module("transformers")

__all__ = ["GENERATING", "GeneratingClass", "generating_classes", "small_items", "small_model"]

MOST_WEIGHTS = 30_000_000

#: Mappings of transformers' auto classes whose models generate tokens.
GENERATING = ("CAUSAL_LM", "SEQ_TO_SEQ_CAUSAL_LM", "SPEECH_SEQ_2_SEQ", "IMAGE_TEXT_TO_TEXT", "MULTIMODAL_LM")


@dataclass(frozen=True)
class GeneratingClass:
    """A class of transformers that generates.

    Attributes:
        name: Its name.
        types: The model types that it is the class of.
        mappings: The mappings that name it.
    """

    name: str
    types: tuple[str, ...]
    mappings: tuple[str, ...]


def generating_classes() -> dict[str, GeneratingClass]:
    """Returns all classes of transformers that generate, by name."""
    # A class may be that of several types, in several mappings; classes made of any two models are in none.
    auto: Any = importlib.import_module("transformers.models.auto.modeling_auto")
    types: dict[str, list[str]] = {}
    mappings: dict[str, list[str]] = {}
    for mapping in GENERATING:
        for kind, names in getattr(auto, f"MODEL_FOR_{mapping}_MAPPING_NAMES", {}).items():
            for name in (names,) if isinstance(names, str) else names:
                types.setdefault(name, []).append(kind)
                mappings.setdefault(name, []).append(mapping)
    types["VisionEncoderDecoderModel"] = ["vision-encoder-decoder"]
    types["EncoderDecoderModel"] = ["encoder-decoder"]
    return {
        name: GeneratingClass(name, tuple(dict.fromkeys(kinds)), tuple(dict.fromkeys(mappings.get(name, ()))))
        for name, kinds in sorted(types.items())
    }


def _layers(values: Mapping[str, Any], kinds: list[Any]) -> list[Any]:
    """One entry of each kind, and at least as many as there are layers; of numbers of layers the first ones."""
    if kinds == list(range(len(kinds))):
        return kinds[:LAYERS]
    distinct = [kind for place, kind in enumerate(kinds) if kind not in kinds[:place]]
    return [*distinct, *[distinct[-1]] * (LAYERS - len(distinct))] if distinct else []


def _key_heads(values: Mapping[str, Any], name: str) -> Any:
    """As many heads of keys as the default has for its heads: one, all, or half of them."""
    heads = next(
        (values[other] for other in ("num_attention_heads", "n_head", "n_heads") if other in values), None
    )
    few = values[name]
    return few if few == 1 else HEADS if few is None or few == heads else 2


def shrink(values: Mapping[str, Any]) -> dict[str, Any]:
    """Makes the fields of a configuration small.

    Args:
        values: Its default fields; those that are mappings are parts.
    """
    # Lists that have an entry for each layer say how many layers there have to be; all other fields go by name.
    default = next((values[name] for name in LAYER_COUNTS if isinstance(values.get(name), int)), None)
    lists = {
        name: _layers(values, value)
        for name, value in values.items()
        if isinstance(value, list)
        and value
        and (len(value) == default or name.endswith("layer_types"))
        and name != "time_step_limit"
    }
    count = max(map(len, lists.values()), default=LAYERS)
    small: dict[str, Any] = {}
    for name, value in values.items():
        if name in FOR_OTHER_LAYERS:
            continue
        if name in lists:
            small[name] = [*lists[name], *[lists[name][-1]] * (count - len(lists[name]))]
        elif name in LAYER_COUNTS:
            small[name] = count
        elif name in ("num_key_value_heads", "num_kv_heads", "kv_n_heads", "multi_query_group_num"):
            small[name] = _key_heads(values, name)
        elif isinstance(value, Mapping):
            small[name] = shrink(value)
        elif name == "mrope_section":
            small[name] = [1, 1, 2]
        elif (
            name in SIZES
            and (value is not None or SIZES[name] is None or name == "head_dim")
            and not isinstance(value, (list, tuple))
        ):
            small[name] = SIZES[name]
        elif isinstance(value, list) and name in ("image_size", "patch_size"):
            small[name] = [SIZES[name]] * len(value)
        else:
            small[name] = value
    return small


def _put(values: dict[str, Any], path: str, value: Any) -> None:
    *parts, name = path.split(".")
    for part in parts:
        values = values.setdefault(part, {})
    if value is ...:
        values.pop(name, None)
    else:
        values[name] = value


def small_config(entry: GeneratingClass) -> Any:
    """Returns a small configuration of a class.

    Args:
        entry: The class.
    """
    kind: Any = getattr(transformers, entry.name).config_class
    overrides = OVERRIDES.get(entry.name) or OVERRIDES.get(kind.model_type) or {}
    if "" in overrides:
        return kind(**overrides[""])
    values = shrink(kind().to_dict())
    for path, value in overrides.items():
        _put(values, path, value)
    return kind(**values)


def small_model(entry: GeneratingClass, seed: int = 0) -> Any:
    """Returns a small model of a class, with seeded weights large enough that tokens vary, in eval mode.

    Args:
        entry: The class.
        seed: Of the weights; they are larger with a larger one.

    Raises:
        ValueError: It would not be small.
    """
    family = _items_of(entry)
    if family is not None:
        return tiny_items.tiny_with_items(family)
    # Sizes are told on no memory first: a field that no rule knows makes models of gigabytes.
    cls: Any = getattr(transformers, entry.name)
    config = small_config(entry)
    with torch.device("meta"):
        size = sum(weight.numel() for weight in cls(config).parameters())
    if size > MOST_WEIGHTS:
        raise ValueError(f"it has {size} weights")
    torch.manual_seed(seed)
    model = cls(small_config(entry)).eval()
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=(1.7 + seed) / math.sqrt(WIDTH))
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.eos_token_id = None
        model.generation_config.forced_eos_token_id = None
        if (
            getattr(config, "is_encoder_decoder", False)
            and model.generation_config.decoder_start_token_id is None
        ):
            model.generation_config.decoder_start_token_id = START
        model.generation_config.pad_token_id = PAD
    return model


def _items_of(entry: GeneratingClass) -> str | None:
    """Returns the name of a class among the models that have items by hand."""
    return next(
        (
            name
            for name, row in tiny_items.MODELS.items()
            if entry.name == f"{row[0]}ForConditionalGeneration"
        ),
        None,
    )


def small_items(entry: GeneratingClass, model: Any) -> dict[str, Any] | None:
    """Returns what is read besides text; None: text alone.

    Args:
        entry: The class.
        model: The small model of it.
    """
    # What the table says, else one picture of the size that the config says, and as many tokens as it has features.
    family = _items_of(entry)
    if family is not None:
        *_, by_hand, count = tiny_items.MODELS[family]
        return {**by_hand, "count": count}
    item = ITEMS.get(entry.name) or ITEMS.get(model.config.model_type)
    if item is not None:
        return dict(item)
    names = inspect.signature(model.forward).parameters
    main = next((name for name in ("pixel_values", "input_features", "input_values") if name in names), None)
    if main is None:
        return None
    label = "image" if main == "pixel_values" else "audio"
    part = getattr(model.config, f"{'vision' if label == 'image' else label}_config", None) or model.config
    owners = (model, getattr(model, "model", None))
    encode: Any = next(filter(None, (getattr(each, f"get_{label}_features", None) for each in owners)), None)
    if encode is None and main == getattr(model, "main_input_name", ""):
        encode = model.get_encoder()
    if encode is None:
        raise ValueError(f"it has no get_{label}_features()")
    # The first form that its own encoder takes; which arguments there are is told by both signatures.
    known = {*names, *inspect.signature(encode).parameters}
    if main != getattr(model, "main_input_name", ""):  # it is that of the prompt
        known -= {"attention_mask"}
    types: dict[str, Any] = {name: [] for name in ("token_type_ids", "mm_token_type_ids") if name in names}
    errors = []
    for form in (_pictures if label == "image" else _recordings)(part):
        item = {name: value for name, value in form.items() if name == main or name in known}
        try:
            return {**_counted(encode, main, item), **types}
        except Exception as error:
            errors.append(f"{type(error).__name__}: {error}")
    raise ValueError(f"no form of {main} is taken by its encoder; of the first, {errors[0]}")


def _counted(encode: Any, main: str, item: Mapping[str, Any]) -> dict[str, Any]:
    """Returns an item with how many tokens it has."""
    values = {
        name: torch.ones(value) if isinstance(value, tuple) else torch.tensor(value)
        for name, value in item.items()
    }
    with torch.no_grad():
        features = encode(**values)
    if hasattr(features, "last_hidden_state") and getattr(features, "pooler_output", None) is None:
        features = features.last_hidden_state
    features = getattr(features, "pooler_output", features)
    parts = [features] if isinstance(features, torch.Tensor) else list(features)
    return {**item, "count": sum(each.shape[:-1].numel() for each in parts)}


def _pictures(vision: Any) -> Iterator[dict[str, Any]]:
    """Forms that pictures may have: whole, in tiles, or cut into patches."""
    side = getattr(vision, "image_size", None) or 16
    patch = getattr(vision, "patch_size", None) or 8
    side, patch = (value if isinstance(value, int) else value[-1] for value in (side, patch))
    frames, channels = (
        getattr(vision, "temporal_patch_size", None) or 1,
        getattr(vision, "num_channels", None) or 3,
    )
    merge = getattr(vision, "spatial_merge_size", None) or 1
    grids = {
        "image_grid_thw": [[1, 4, 4]],
        "image_merge_sizes": [merge],
        "spatial_shapes": [[4, 4]],
        "target_sizes": [[4, 4]],
        "grid_hws": [[4, 4]],
        "image_position_ids": [[[x, y] for y in range(4) for x in range(4)]],
    }
    pixels = channels * patch**2
    if not hasattr(vision, "temporal_patch_size") or not frames:
        frames = 1
    for size in dict.fromkeys((side, 16, 32)):
        mask = [[[[1] * size] * size]]
        yield {"pixel_values": (1, channels, size, size), "image_sizes": [[size, size]]}
        yield {
            "pixel_values": (1, 1, channels, size, size),
            "image_sizes": [[size, size]],
            "pixel_attention_mask": mask,
        }
        for tiles in (3, 5):
            sizes = [[2 * size, 2 * size]]
            yield {"pixel_values": (1, tiles, channels, size, size), "image_sizes": sizes}
    for shape in (
        (16, pixels * frames),
        (16, pixels),
        (16, 2 * pixels),
        (16, channels, patch, patch),
        (1, 16, pixels),
        (1, 16, channels, patch, patch),
    ):
        yield {"pixel_values": shape, **grids, "pixel_attention_mask": [[1] * 16]}


def _recordings(sound: Any) -> Iterator[dict[str, Any]]:
    """Forms that recordings may have: mels and frames in either order, or samples."""
    names = (
        "num_mel_bins",
        "feature_size",
        "input_feat_per_channel",
        "input_dim",
        "mel_bins",
        "feat_in",
        "n_mels",
    )
    mels = next((value for name in names if isinstance(value := getattr(sound, name, None), int)), 8)
    longest = 2 * (getattr(sound, "max_source_positions", None) or 8)
    for frames in dict.fromkeys((longest, 16, 32, 64, 200)):
        masks = {
            name: [[1] * frames]
            for name in ("input_features_mask", "feature_attention_mask", "attention_mask")
        }
        yield {"input_features": (1, mels, frames), **masks}
        yield {"input_features": (1, frames, mels), **masks}
        yield {"input_features": (1, mels, frames)}
        yield {"input_features": (1, frames, mels)}
    yield {"input_values": (1, 1200)}
    yield {"input_values": (1, 1, 1200)}
