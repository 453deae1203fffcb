"""Tiny encoder-decoder models of transformers with random weights, whose tokens vary and depend on their input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

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
SWIN = {
    "image_size": [16, 16],
    "patch_size": 2,
    "embed_dim": 12,
    "depths": [1, 2],
    "num_heads": [2, 2],
    "window_size": 2,
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


def _as_bart(name: str, **options: Any) -> Any:
    config = getattr(transformers, f"{name}Config")(**{**TEXT, **options})
    return getattr(transformers, f"{name}ForConditionalGeneration")(config)


def marian() -> Any:
    return transformers.MarianMTModel(transformers.MarianConfig(**TEXT))


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


def _captioner(decoder: Any, encoder: Any = None) -> Any:
    encoder = encoder or transformers.ViTModel(transformers.ViTConfig(**VIT))
    model = transformers.VisionEncoderDecoderModel(encoder=encoder, decoder=decoder)
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
    encoder = transformers.DonutSwinModel(transformers.DonutSwinConfig(**SWIN))
    return _captioner(transformers.MBartForCausalLM(config), encoder)


def _longt5(kind: str) -> Any:
    def config(**options: Any) -> Any:
        return transformers.LongT5Config(
            **options, local_radius=3, global_block_size=4, encoder_attention_type=kind
        )

    return _t5(config, transformers.LongT5ForConditionalGeneration)  # type: ignore[arg-type]


def speech_to_text() -> Any:
    options = {"input_feat_per_channel": 8, "conv_channels": 16, "max_source_positions": 60}
    tokens = {"pad_token_id": 1, "max_target_positions": 40}
    config = transformers.Speech2TextConfig(**{**SHAPE, **options, **tokens})
    return transformers.Speech2TextForConditionalGeneration(config)


def moonshine() -> Any:
    sides = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in {
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
        }.items()
    }
    config = transformers.MoonshineConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        pad_token_id=PAD,
        eos_token_id=EOS,
        bos_token_id=START,
        decoder_start_token_id=START,
        initializer_range=0.3,
        **sides,
    )
    return transformers.MoonshineForConditionalGeneration(config)


CROSS = {"is_decoder": True, "add_cross_attention": True}
BERT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "initializer_range": 0.4,
    "pad_token_id": 1,
    "eos_token_id": EOS,
    "bos_token_id": START,
}


def _decoder(kind: str, **options: Any) -> Any:
    """A decoder of any family, as a `VisionEncoderDecoderModel` and an `EncoderDecoderModel` take it."""
    config, model = {**DECODERS, **OTHER_DECODERS, **BROKEN_DECODERS}[kind]
    if kind == "rembert":
        options = {"input_embedding_size": 24, "output_embedding_size": 24, **options}
    if kind == "roformer":
        options = {"embedding_size": 24, **options}
    if kind == "roc_bert":
        names = ("shape_embed_dim", "pronunciation_embed_dim", "shape_vocab_size", "pronunciation_vocab_size")
        options = {**dict(zip(names, (8, 8, 99, 99), strict=True)), **options}
    if kind == "xglm":
        options = {"attention_heads": 4, "num_layers": 2, "ffn_dim": 48, "pad_token_id": 1, **options}
    if kind == "gpt_bigcode":
        options = {"multi_query": False, **options}
    if kind == "xmod":
        options = {"default_language": "en_XX", "languages": ["en_XX"], **options}
    likes_bart = (
        "Bart",
        "MBart",
        "Marian",
        "Pegasus",
        "Blenderbot",
        "Mvp",
        "PLBart",
        "BigBirdPegasus",
        "XGLM",
    )
    base = TEXT if config.startswith(likes_bart) else BERT
    return getattr(transformers, model)(
        getattr(transformers, config)(
            **{**base, **CROSS, "pad_token_id": PAD if base is TEXT else 1, **options}
        )
    )


#: Kinds of decoders that may stand behind any encoder.
DECODERS = {
    "bert": ("BertConfig", "BertLMHeadModel"),
    "bert-generation": ("BertGenerationConfig", "BertGenerationDecoder"),
    "roberta": ("RobertaConfig", "RobertaForCausalLM"),
    "xlm-roberta": ("XLMRobertaConfig", "XLMRobertaForCausalLM"),
    "camembert": ("CamembertConfig", "CamembertForCausalLM"),
    "data2vec-text": ("Data2VecTextConfig", "Data2VecTextForCausalLM"),
    "rembert": ("RemBertConfig", "RemBertForCausalLM"),
    "roformer": ("RoFormerConfig", "RoFormerForCausalLM"),
    "electra": ("ElectraConfig", "ElectraForCausalLM"),
    "ernie": ("ErnieConfig", "ErnieForCausalLM"),
    "bart": ("BartConfig", "BartForCausalLM"),
    "marian": ("MarianConfig", "MarianForCausalLM"),
    "pegasus": ("PegasusConfig", "PegasusForCausalLM"),
    "blenderbot": ("BlenderbotConfig", "BlenderbotForCausalLM"),
    "blenderbot-small": ("BlenderbotSmallConfig", "BlenderbotSmallForCausalLM"),
}


#: Further kinds, which one token choice is enough to try.
OTHER_DECODERS = {
    "bigbird-pegasus": ("BigBirdPegasusConfig", "BigBirdPegasusForCausalLM"),
    "mbart": ("MBartConfig", "MBartForCausalLM"),
    "mvp": ("MvpConfig", "MvpForCausalLM"),
    "plbart": ("PLBartConfig", "PLBartForCausalLM"),
    "roberta-prelayernorm": ("RobertaPreLayerNormConfig", "RobertaPreLayerNormForCausalLM"),
    "roc_bert": ("RoCBertConfig", "RoCBertForCausalLM"),
    "xglm": ("XGLMConfig", "XGLMForCausalLM"),
    "xlm-roberta-xl": ("XLMRobertaXLConfig", "XLMRobertaXLForCausalLM"),
}

#: Kinds that cannot stand behind a ViT: the library's own generate() fails, or values are looked at.
BROKEN_DECODERS = {
    "big_bird": ("BigBirdConfig", "BigBirdForCausalLM"),
    "gpt_bigcode": ("GPTBigCodeConfig", "GPTBigCodeForCausalLM"),
    "megatron-bert": ("MegatronBertConfig", "MegatronBertForCausalLM"),
    "xmod": ("XmodConfig", "XmodForCausalLM"),
}


def captioner(kind: str) -> Any:
    """A decoder of any kind behind a ViT, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(SEEDS.get(f"vit-{kind}", 3))
        return _captioner(_decoder(kind)).eval()


def _text_pair(decoder: Any) -> Any:
    encoder = transformers.BertModel(transformers.BertConfig(**BERT))
    model = transformers.EncoderDecoderModel(encoder=encoder, decoder=decoder)
    model.generation_config = transformers.GenerationConfig(
        decoder_start_token_id=START, pad_token_id=PAD, eos_token_id=EOS
    )
    return model


#: Families that are called as those of `MODELS` are, but are no others' model.
FAMILIES: dict[str, Callable[[], Any]] = {
    "umt5": lambda: _t5(transformers.UMT5Config, transformers.UMT5ForConditionalGeneration),
    "longt5": lambda: _longt5("local"),
    "longt5-global": lambda: _longt5("transient-global"),
    "pegasus_x": lambda: _as_bart("PegasusX", num_global_tokens=4, block_size=4),
    "blenderbot": lambda: _as_bart("Blenderbot"),
    "blenderbot-small": lambda: _as_bart("BlenderbotSmall"),
    "m2m_100": lambda: _as_bart("M2M100", pad_token_id=1),
    "plbart": lambda: _as_bart("PLBart"),
    "speech_to_text": speech_to_text,
    "moonshine": moonshine,
    "bert-bert": lambda: _text_pair(_decoder("bert", hidden_size=32)),
    "bert-gpt2": lambda: _text_pair(gpt2().decoder),
    **{f"vit-{kind}": lambda kind=kind: _captioner(_decoder(kind)) for kind in DECODERS},  # type: ignore[misc]
}

MODELS: dict[str, Callable[[], Any]] = {
    "t5": lambda: _t5(transformers.T5Config, transformers.T5ForConditionalGeneration),
    "mt5": lambda: _t5(transformers.MT5Config, transformers.MT5ForConditionalGeneration),
    "bart": lambda: _as_bart("Bart"),
    "marian": marian,
    "mbart": lambda: _as_bart("MBart", scale_embedding=True),
    "pegasus": lambda: _as_bart("Pegasus", scale_embedding=True),
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
    "blenderbot-small": 11,
    "plbart": 4,
    "bert-gpt2": 5,
    "bert-bert": 19,
    "vit-bert": 4,
    "vit-marian": 4,
    "vit-data2vec-text": 4,
    "vit-rembert": 6,
    "vit-roformer": 4,
    "vit-bert-generation": 4,
    "vit-roberta": 6,
    "vit-xlm-roberta": 4,
    "vit-camembert": 4,
}

CAPTIONERS = ("gpt2", "trocr", "donut")


def tiny(name: str) -> Any:
    """The model, in eval mode; the generator of the tests is left alone."""
    with torch.random.fork_rng():
        torch.manual_seed(SEEDS.get(name, 3))
        model: Any = {**MODELS, **FAMILIES}[name]()
    # Blenderbot's own config bans what was said before, which is not followed.
    model.generation_config.encoder_no_repeat_ngram_size = 0
    model.generation_config.no_repeat_ngram_size = 0
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
    if name == "speech_to_text":
        mask = (torch.arange(40) < torch.tensor([40, 30, 17])[:rows, None]).long()
        return {"input_features": torch.randn(rows, 40, 8, generator=generator), "attention_mask": mask}
    if name == "moonshine":
        mask = (torch.arange(4000) < torch.tensor([4000, 3100, 2000])[:rows, None]).long()
        return {"input_values": torch.randn(rows, 4000, generator=generator), "attention_mask": mask}
    if name in CAPTIONERS or name.startswith("vit-"):
        return {"pixel_values": torch.randn(rows, 3, 16, 16, generator=generator)}
    return texts((9, 5, 2, 12, 1)[:rows])


def generated(model: Any, request: dict[str, Tensor], **options: Any) -> Tensor:
    """What the model generates by itself."""
    with torch.no_grad():
        result: Tensor = model.generate(**request, **{"do_sample": False, "num_beams": 1, **options})
    return result
