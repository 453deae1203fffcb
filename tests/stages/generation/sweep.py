"""Runs every class of transformers that generates, in a small configuration, and writes down which are taken.

    python -m tests.stages.generation.sweep results.jsonl            # goes on where it stopped
    python -m tests.stages.generation.sweep results.jsonl --write    # makes the page of the docs of them

A class is *taken* if a pipeline made of it gives the tokens of its own ``generate()`` over two prompts of different
lengths. It is *refused* if ``from_transformers`` or a plan says why not. *Not tried* are classes of which no small
configuration is known here that their own ``generate()`` runs.
"""

from __future__ import annotations

import json
import signal
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.models.auto import modeling_auto

from orchestrator.errors import OrchestratorError
from orchestrator_stages import from_transformers
from tests.stages.generation import tiny_items
from tests.stages.generation.tiny import PAD, START, VOCABULARY, prompts

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "generating-models.md"
SECONDS = 240
NEW = 4
MAPPINGS = {
    "goes on with its prompt": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "reads pictures": "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
    "encodes text": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "encodes sound": "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",
}

#: Sizes by the names that configs have for them.
SIZES: tuple[tuple[Any, tuple[str, ...]], ...] = (
    (
        32,
        (
            "hidden_size",
            "d_model",
            "n_embd",
            "dim",
            "embedding_size",
            "word_embed_proj_dim",
            "emb_dim",
            "embed_dim",
        ),
    ),
    (
        48,
        (
            "intermediate_size",
            "ffn_dim",
            "d_ff",
            "n_inner",
            "ffn_hidden_size",
            "decoder_ffn_dim",
            "encoder_ffn_dim",
        ),
    ),
    (
        16,
        (
            *("moe_intermediate_size", "shared_expert_intermediate_size", "q_lora_rank", "kv_lora_rank"),
            *(
                "expert_ffn_hidden_size",
                "mamba_d_head",
                "mamba_head_dim",
                "moe_shared_expert_intermediate_size",
            ),
            *("shared_intermediate_size", "time_step_rank", "d_inner", "index_head_dim", "o_lora_rank"),
        ),
    ),
    (
        1,
        (
            *("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"),
            *(
                "num_decoder_layers",
                "mamba_n_groups",
                "n_groups",
                "n_group",
                "topk_group",
                "num_nextn_predict_layers",
            ),
            *("num_encoder_layers", "num_mem_blocks", "n_shared_experts", "num_shared_experts"),
        ),
    ),
    (
        4,
        (
            *(
                "num_attention_heads",
                "n_head",
                "n_heads",
                "num_heads",
                "decoder_attention_heads",
                "sliding_window",
            ),
            *(
                "encoder_attention_heads",
                "num_experts",
                "num_local_experts",
                "n_routed_experts",
                "moe_num_experts",
            ),
            *("linear_num_value_heads", "mamba_n_heads", "mamba_num_heads", "num_encoder_attention_heads"),
            *("num_decoder_attention_heads", "index_n_heads"),
        ),
    ),
    (
        2,
        (
            *(
                "num_key_value_heads",
                "num_kv_heads",
                "num_experts_per_tok",
                "moe_topk",
                "linear_num_key_heads",
            ),
            *("moe_k", "num_experts_per_token", "index_topk"),
        ),
    ),
    (
        8,
        (
            *(
                "head_dim",
                "d_kv",
                "qk_rope_head_dim",
                "qk_nope_head_dim",
                "v_head_dim",
                "linear_key_head_dim",
            ),
            *(
                "linear_value_head_dim",
                "state_size",
                "mamba_d_state",
                "ssm_state_size",
                "rotary_dim",
                "d_state",
            ),
            *("mamba_chunk_size", "chunk_size", "attention_chunk_size", "hidden_size_per_layer_input"),
        ),
    ),
    (64, ("max_position_embeddings", "n_positions", "n_ctx", "max_target_positions", "max_seq_len")),
    (0, ("first_k_dense_replace", "num_kv_shared_layers")),
    (0.5, ("initializer_range", "init_std")),
    (VOCABULARY, ("vocab_size", "vocab_size_per_layer_input")),
    (PAD, ("pad_token_id",)),
    (START, ("bos_token_id", "decoder_start_token_id")),
    (False, ("tie_word_embeddings", "tie_encoder_decoder")),
    (True, ("is_decoder",)),
)
SMALL = {name: value for value, names in SIZES for name in names}

#: What some configs want besides, by model type.
SPECIAL: Mapping[str, Mapping[str, Any]] = {
    "falcon": {"num_kv_heads": 4},
    "gpt_neo": {"attention_types": [[["global"], 1]], "num_layers": 1},
    "gptj": {"rotary_dim": 4},
    "codegen": {"rotary_dim": 4, "n_head": 4},
    "mamba2": {"num_heads": 4, "head_dim": 16, "n_groups": 1},
    "biogpt": {"num_attention_heads": 4},
    "whisper": {"num_mel_bins": 8, "max_source_positions": 8, "suppress_tokens": None},
    "speech_to_text": {"input_feat_per_channel": 8, "input_channels": 1, "conv_channels": 16},
}


class OutOfTimeError(Exception):
    """A class took too long."""


def classes() -> Iterator[tuple[str, str, str]]:
    """Kinds, model types and names of all generating classes; a class comes once."""
    before = set()
    for kind, mapping in MAPPINGS.items():
        for model_type, names in sorted(getattr(modeling_auto, mapping).items()):
            for name in (names,) if isinstance(names, str) else names:
                if name not in before and hasattr(transformers, name):
                    before.add(name)
                    yield kind, model_type, name


def small_config(cls: Any, without: frozenset[str] = frozenset()) -> Any:
    """A small config of a class, parts of it included."""
    default = cls().to_dict()
    options = {name: value for name, value in SMALL.items() if default.get(name, ...) is not ...}
    types = default.get("layer_types")
    if isinstance(types, list):
        options["layer_types"] = list(dict.fromkeys(types))[:3]
        options["num_hidden_layers"] = len(options["layer_types"])
    for name in default:
        if isinstance(default[name], list) and len(default[name]) == default.get("num_hidden_layers"):
            options.setdefault(name, default[name][: options.get("num_hidden_layers", 1)])
    options["eos_token_id"] = None
    options |= SPECIAL.get(cls.model_type, {})
    return cls(**{name: value for name, value in options.items() if name not in without})


def model_of(model_type: str, name: str, without: frozenset[str]) -> Any:
    """A small model, in eval mode."""
    family = next(
        (key for key, value in tiny_items.MODELS.items() if name.startswith(f"{value[0]}For")), None
    )
    if family is not None:
        return tiny_items.tiny_with_items(family)
    cls = getattr(transformers, name)
    torch.manual_seed(0)
    model = cls(small_config(cls.config_class, without)).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    for option in ("forced_eos_token_id", "forced_bos_token_id", "suppress_tokens", "begin_suppress_tokens"):
        setattr(model.generation_config, option, None)
    return model


def request_of(model: Any, name: str) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """Inputs of a pipeline, those that generate() takes besides, and options of the importer."""
    family = next(
        (key for key, value in tiny_items.MODELS.items() if name.startswith(f"{value[0]}For")), None
    )
    if family is not None:
        count = tiny_items.MODELS[family][-1]
        request = prompts(count + 3, 2)
        request["input_ids"][0, 1 : 1 + count] = tiny_items.ITEM
        items = tiny_items.items_in(family, request["input_ids"])
        numbers = {key: value for key, value in items.items() if value.is_floating_point()}
        rest = {key: value for key, value in items.items() if key not in numbers}
        options = {"tokens": (count + 3,), "items": (1,), "example": tiny_items.item_of(family)}
        return {**request, **numbers}, rest, options
    if model.main_input_name == "input_features":
        config = model.config
        mels = getattr(config, "num_mel_bins", 8)
        return {"input_features": torch.randn(2, mels, 2 * config.max_source_positions)}, {}, {}
    side = "right" if model.config.is_encoder_decoder else "left"
    return prompts(4, 3, side=side), {}, {"tokens": (4,)}


def attempt(model_type: str, name: str) -> tuple[str, str]:
    """What becomes of a class, and why."""
    # A config may have a default that follows from sizes which are not small: it is left out in a second try.
    errors = []
    for without in (
        frozenset[str](),
        frozenset({"head_dim"}),
        frozenset({"layer_types", "num_key_value_heads"}),
    ):
        try:
            model = model_of(model_type, name, without)
            request, rest, options = request_of(model, name)
            with torch.no_grad():
                expected = model.generate(**request, **rest, max_new_tokens=NEW, do_sample=False, num_beams=1)
            break
        except OutOfTimeError:
            raise
        except Exception as error:
            errors.append(error)
    else:
        return "not tried", first_line(errors[0])
    try:
        pipeline = from_transformers(model, max_new_tokens=NEW, batch=(2,), num_beams=1, **options)
        with pipeline.plan().load() as session:
            tokens = session(**request)["tokens"]
    except OrchestratorError as error:
        return "refused", first_line(error)
    return ("taken", "equal tokens") if tokens.equal(expected) else ("wrong", "other tokens")


def first_line(error: BaseException) -> str:
    """The kind and the first line of an error."""
    text = str(error).strip().splitlines()
    kind = "" if isinstance(error, OrchestratorError) else f"{type(error).__name__}: "
    return f"{kind}{text[0] if text else ''}"[:300]


def run(results: Path) -> None:
    """Tries what has no result yet."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise OutOfTimeError

    signal.signal(signal.SIGALRM, stop)
    known = {row["name"] for row in read(results)}
    for kind, model_type, name in classes():
        if name in known:
            continue
        signal.alarm(SECONDS)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                verdict, reason = attempt(model_type, name)
        except OutOfTimeError:
            verdict, reason = "not tried", f"it takes more than {SECONDS} s here"
        except Exception as error:
            verdict, reason = "broken", first_line(error)
        signal.alarm(0)
        row = {"kind": kind, "type": model_type, "name": name, "verdict": verdict, "reason": reason}
        with results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        sys.stdout.write(f"{name:48} {verdict:10} {reason[:110]}\n")
        sys.stdout.flush()


def read(results: Path) -> list[dict[str, str]]:
    """The results so far."""
    lines = results.read_text(encoding="utf-8").splitlines() if results.exists() else []
    return [json.loads(line) for line in lines]


def page(rows: list[dict[str, str]]) -> str:
    """The page of the docs."""
    taken = [row for row in rows if row["verdict"] == "taken"]
    refused = [row for row in rows if row["verdict"] in ("refused", "wrong", "broken")]
    others = [row for row in rows if row["verdict"] == "not tried"]
    parts = [
        "# Models that generate",
        "",
        wrapped(
            "`from_transformers` takes a model by its own forward, so there is no list of families in it. This page "
            f"says what became of the classes of transformers {transformers.__version__} that generate, each in a "
            "small "
            "configuration with random weights, two prompts of different lengths and greedy choice. It is made by "
            "`python -m tests.stages.generation.sweep`."
        ),
        "",
        wrapped(
            f"Of {len(rows)} classes {len(taken)} are taken: the pipeline gives the tokens of the class's own "
            f"`generate()`. {len(refused)} are refused, each with the sentence that the user reads. Of {len(others)} "
            "no small configuration is known that their own `generate()` runs, so nothing is said of them."
        ),
        "",
        "## Taken",
    ]
    for kind in MAPPINGS:
        names = sorted(f"`{row['name']}`" for row in taken if row["kind"] == kind)
        if names:
            parts += ["", f"A model that {kind} ({len(names)}):", "", wrapped(", ".join(names) + ".")]
    parts += ["", "## Refused", "", "| class | why |", "|---|---|"]
    parts += [
        f"| `{row['name']}` | {cell(row['reason'])} |" for row in sorted(refused, key=lambda row: row["name"])
    ]
    names = sorted(f"`{row['name']}`" for row in others)
    parts += ["", "## Not tried", "", wrapped(", ".join(names) + ".")]
    return "\n".join(parts) + "\n"


def cell(text: str) -> str:
    """A text as a cell of a table."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")


def wrapped(text: str, width: int = 118) -> str:
    """A text in lines."""
    lines = [""]
    for word in text.split(" "):
        if len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)


if __name__ == "__main__":
    if "--write" in sys.argv:
        PAGE.write_text(page(read(Path(sys.argv[1]))), encoding="utf-8")
    else:
        transformers.utils.logging.set_verbosity_error()
        run(Path(sys.argv[1]))
