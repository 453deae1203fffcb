"""Every family that the project promises is among those whose tokens are compared with its own ``generate()``."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tests.stages.generation import test_items, test_prompts
from tests.stages.generation.tiny import DECODERS
from tests.stages.generation.tiny_items import MODELS
from tests.stages.seq2seq import test_families, test_pictures
from tests.stages.tiny_models import BROKEN_DECODERS, OTHER_DECODERS, tiny, transformers
from tests.stages.tiny_models import DECODERS as CROSS_DECODERS

#: Families with an encoder and a decoder: the class, and the models that are tried.
ENCODER_DECODERS = {
    "T5": ("T5ForConditionalGeneration", ["t5"]),
    "mT5": ("MT5ForConditionalGeneration", ["mt5"]),
    "UMT5": ("UMT5ForConditionalGeneration", ["umt5"]),
    "LongT5": ("LongT5ForConditionalGeneration", ["longt5", "longt5-global"]),
    "BART": ("BartForConditionalGeneration", ["bart"]),
    "mBART": ("MBartForConditionalGeneration", ["mbart"]),
    "Marian": ("MarianMTModel", ["marian"]),
    "Pegasus": ("PegasusForConditionalGeneration", ["pegasus"]),
    "PegasusX": ("PegasusXForConditionalGeneration", ["pegasus_x"]),
    "Blenderbot": ("BlenderbotForConditionalGeneration", ["blenderbot"]),
    "M2M100": ("M2M100ForConditionalGeneration", ["m2m_100"]),
    "Whisper": ("WhisperForConditionalGeneration", ["whisper"]),
    "Moonshine": ("MoonshineForConditionalGeneration", ["moonshine"]),
    "Speech2Text": ("Speech2TextForConditionalGeneration", ["speech_to_text"]),
    "VisionEncoderDecoder": (
        "VisionEncoderDecoderModel",
        ["gpt2", *(f"vit-{kind}" for kind in CROSS_DECODERS)],
    ),
    "EncoderDecoder": ("EncoderDecoderModel", ["bert-bert", "bert-gpt2"]),
    "TrOCR": ("VisionEncoderDecoderModel", ["trocr"]),
    "Donut": ("VisionEncoderDecoderModel", ["donut"]),
}

#: Families that go on with their prompt, of text alone.
CONTINUATIONS = {
    "GPT-2": ("GPT2LMHeadModel", "gpt2"),
    "Llama": ("LlamaForCausalLM", "llama"),
    "Mistral": ("MistralForCausalLM", "mistral"),
    "Qwen2": ("Qwen2ForCausalLM", "qwen2"),
    "Qwen3": ("Qwen3ForCausalLM", "qwen3"),
    "Gemma2": ("Gemma2ForCausalLM", "gemma2"),
    "Gemma3": ("Gemma3ForCausalLM", "gemma3"),
    "Phi": ("PhiForCausalLM", "phi"),
    "Falcon": ("FalconForCausalLM", "falcon"),
    "Mixtral": ("MixtralForCausalLM", "mixtral"),
    "Qwen3-MoE": ("Qwen3MoeForCausalLM", "qwen3-moe"),
}

#: Those with pictures or recordings in their prompt.
WITH_ITEMS = {
    "Llava": ("LlavaForConditionalGeneration", "llava"),
    "LlavaNext": ("LlavaNextForConditionalGeneration", "llava-next"),
    "PaliGemma": ("PaliGemmaForConditionalGeneration", "paligemma"),
    "Qwen2-VL": ("Qwen2VLForConditionalGeneration", "qwen2-vl"),
    "Qwen2.5-VL": ("Qwen2_5_VLForConditionalGeneration", "qwen2.5-vl"),
    "Qwen3-VL": ("Qwen3VLForConditionalGeneration", "qwen3-vl"),
    "SmolVLM": ("SmolVLMForConditionalGeneration", "smolvlm"),
    "Idefics3": ("Idefics3ForConditionalGeneration", "idefics3"),
    "Pixtral": ("LlavaForConditionalGeneration", "pixtral"),
    "Mistral3": ("Mistral3ForConditionalGeneration", "mistral3"),
    "Gemma3": ("Gemma3ForConditionalGeneration", "gemma3"),
    "InternVL": ("InternVLForConditionalGeneration", "internvl"),
    "Llama4": ("Llama4ForConditionalGeneration", "llama4"),
    "BLIP-2": ("Blip2ForConditionalGeneration", "blip-2"),
    "Qwen2-Audio": ("Qwen2AudioForConditionalGeneration", "qwen2-audio"),
    "Voxtral": ("VoxtralForConditionalGeneration", "voxtral"),
}

#: Classes that read an encoder, and are the decoder of no other model: they write notes of music, several at a time.
NOT_OF_TEXT = {"MusicgenForCausalLM", "MusicgenMelodyForCausalLM"}

#: Decoders that are refused behind any encoder; `test_refused` says why.
REFUSED = {"ProphetNetForCausalLM"}


def parameters(test: Callable[..., Any]) -> set[str]:
    """What a test is parametrised with."""
    values: Iterable[Any] = test.pytestmark[0].args[1]  # type: ignore[attr-defined]
    return {value if isinstance(value, str) else value.values[0] for value in values}


def test_encoder_decoder_families_are_compared_with_generate():
    compared = parameters(test_families.test_same_as_generate_over_a_batch_of_different_lengths)
    for kind, names in ENCODER_DECODERS.values():
        assert compared.issuperset(names)
        assert type(tiny(names[0])).__name__ == kind
    assert type(tiny("donut").encoder).__name__ == "DonutSwinModel"
    assert type(tiny("trocr").decoder).__name__ == "TrOCRForCausalLM"
    assert callable(test_pictures.florence)


def test_families_that_go_on_with_their_prompt_are_compared_with_generate():
    compared = parameters(test_prompts.test_same_as_generate_over_prompts_of_different_lengths)
    assert {name: (DECODERS[key][0], key) for name, (_, key) in CONTINUATIONS.items()} == CONTINUATIONS
    assert compared.issuperset(key for _, key in CONTINUATIONS.values())
    assert "sliding_attention" in DECODERS["gemma3"][2]["layer_types"]
    compared = parameters(test_items.test_same_as_generate_with_two_items_in_a_prompt_and_none_in_another)
    classes = {key: f"{row[0]}ForConditionalGeneration" for key, row in MODELS.items()}
    assert {name: (classes[key], key) for name, (_, key) in WITH_ITEMS.items()} == WITH_ITEMS
    assert compared.issuperset(key for _, key in WITH_ITEMS.values())
    assert MODELS["pixtral"][1]["model_type"] == "pixtral"


def test_every_decoder_that_may_stand_behind_an_encoder_is_tried():
    """Read from the sources: to import all of them takes half a minute."""
    auto: Any = importlib.import_module("transformers.models.auto.modeling_auto")
    names = set(auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    folder = Path(transformers.__file__).parent / "models"
    readers = set()
    for path in folder.glob("*/modeling_*.py"):
        text = path.read_text(encoding="utf-8")
        if "encoder_hidden_states" in text:
            readers |= {
                name
                for name, body in re.findall(r"^class (\w+)\(.*?\n(.*?)(?=^class |\Z)", text, re.M | re.S)
                if name in names and re.search(r"def forward\([^)]*\bencoder_hidden_states", body)
            }
    tables = {**CROSS_DECODERS, **OTHER_DECODERS, **BROKEN_DECODERS}
    tried = {kind for _, kind in tables.values()} | {"GPT2LMHeadModel", "TrOCRForCausalLM"}
    assert readers >= {"BertLMHeadModel", "BartForCausalLM"}
    assert readers - tried == (NOT_OF_TEXT | REFUSED) & readers
