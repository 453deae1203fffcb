"""Tiny encoder-decoder models of transformers with random weights, whose tokens vary and depend on their input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

transformers = pytest.importorskip("transformers")
transformers.utils.logging.set_verbosity_error()

VOCABULARY = 99
PAD, EOS, START = 90, 91, 92

SHAPE = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "init_std": 0.4,
    "tie_word_embeddings": False,
    "pad_token_id": PAD,
    "eos_token_id": EOS,
    "bos_token_id": START,
    "decoder_start_token_id": START,
    "forced_eos_token_id": None,
}
TEXT = {**SHAPE, "max_position_embeddings": 64}
VIT = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "image_size": 16,
    "patch_size": 8,
    "initializer_range": 0.4,
}


def _t5(config: type, model: type) -> Any:
    made = model(
        config(
            vocab_size=VOCABULARY,
            d_model=32,
            d_kv=8,
            d_ff=64,
            num_layers=2,
            num_heads=4,
            relative_attention_num_buckets=8,
            relative_attention_max_distance=20,
            tie_word_embeddings=False,
            pad_token_id=PAD,
            eos_token_id=EOS,
            decoder_start_token_id=START,
        )
    )
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "layer_norm" not in name and "shared" not in name:
                parameter.mul_(3)
    return made


def t5() -> Any:
    return _t5(transformers.T5Config, transformers.T5ForConditionalGeneration)


def mt5() -> Any:
    return _t5(transformers.MT5Config, transformers.MT5ForConditionalGeneration)


def bart() -> Any:
    return transformers.BartForConditionalGeneration(transformers.BartConfig(**TEXT))


def marian() -> Any:
    return transformers.MarianMTModel(transformers.MarianConfig(**TEXT))


def mbart() -> Any:
    return transformers.MBartForConditionalGeneration(transformers.MBartConfig(**TEXT, scale_embedding=True))


def pegasus() -> Any:
    return transformers.PegasusForConditionalGeneration(
        transformers.PegasusConfig(**TEXT, scale_embedding=True)
    )


def whisper() -> Any:
    config = transformers.WhisperConfig(
        **SHAPE,
        num_mel_bins=8,
        max_source_positions=50,
        max_target_positions=40,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    return transformers.WhisperForConditionalGeneration(config)


def _captioner(decoder: Any) -> Any:
    model = transformers.VisionEncoderDecoderModel(
        encoder=transformers.ViTModel(transformers.ViTConfig(**VIT)), decoder=decoder
    )
    model.generation_config = transformers.GenerationConfig(
        decoder_start_token_id=START, pad_token_id=PAD, eos_token_id=EOS
    )
    return model


def gpt2() -> Any:
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=64,
        is_decoder=True,
        add_cross_attention=True,
        initializer_range=0.4,
        tie_word_embeddings=False,
        pad_token_id=PAD,
        eos_token_id=EOS,
        bos_token_id=START,
    )
    return _captioner(transformers.GPT2LMHeadModel(config))


def trocr() -> Any:
    config = transformers.TrOCRConfig(
        vocab_size=VOCABULARY,
        d_model=32,
        decoder_layers=2,
        decoder_attention_heads=4,
        decoder_ffn_dim=64,
        max_position_embeddings=64,
        init_std=0.4,
        is_decoder=True,
        add_cross_attention=True,
        cross_attention_hidden_size=VIT["hidden_size"],
        tie_word_embeddings=False,
        pad_token_id=PAD,
        eos_token_id=EOS,
        bos_token_id=START,
    )
    return _captioner(transformers.TrOCRForCausalLM(config))


def donut() -> Any:
    config = transformers.MBartConfig(**TEXT, is_decoder=True, add_cross_attention=True)
    return _captioner(transformers.MBartForCausalLM(config))


MODELS: dict[str, Callable[[], Any]] = {
    "t5": t5,
    "mt5": mt5,
    "bart": bart,
    "marian": marian,
    "mbart": mbart,
    "pegasus": pegasus,
    "whisper": whisper,
    "gpt2": gpt2,
    "trocr": trocr,
    "donut": donut,
}

#: Seeds that give weights with which tokens vary.
SEEDS = {
    "t5": 1,
    "mt5": 4,
    "bart": 16,
    "marian": 15,
    "mbart": 20,
    "pegasus": 25,
    "whisper": 3,
    "gpt2": 8,
    "trocr": 15,
    "donut": 25,
}

CAPTIONERS = ("gpt2", "trocr", "donut")


def tiny(name: str) -> Any:
    """The model, in eval mode; the generator of the tests is left alone."""
    with torch.random.fork_rng():
        torch.manual_seed(SEEDS[name])
        model: nn.Module = MODELS[name]()
    return model.eval()


def texts(lengths: tuple[int, ...], seed: int = 0) -> dict[str, Tensor]:
    """Ids and mask of texts of these lengths, padded to the longest."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, PAD, (len(lengths), max(lengths)), generator=generator)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": torch.where(mask > 0, ids, PAD), "attention_mask": mask}


def inputs(name: str, rows: int = 3) -> dict[str, Tensor]:
    """A request for a model: texts of different lengths, or noise."""
    generator = torch.Generator().manual_seed(1)
    if name == "whisper":
        return {"input_features": torch.randn(rows, 8, 100, generator=generator)}
    if name in CAPTIONERS:
        return {"pixel_values": torch.randn(rows, 3, 16, 16, generator=generator)}
    return texts((9, 5, 2, 12, 1)[:rows])


def generated(model: Any, request: dict[str, Tensor], **options: Any) -> Tensor:
    """What the model generates by itself."""
    with torch.no_grad():
        result: Tensor = model.generate(**request, **{"do_sample": False, "num_beams": 1, **options})
    return result
