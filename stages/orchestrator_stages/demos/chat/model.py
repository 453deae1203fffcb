"""The model: a vision tower of SigLIP's kind and a text model of Llama's, joined as in LLaVA, with trained weights.

``checkpoint/`` is a folder as ``save_pretrained`` writes it, from ``stages/scripts/train_chat.py``, so that it is read
like any other checkpoint; its ``NOTICE`` says what it was trained on and ``SHA256SUMS`` holds the checksum. It holds
float16 and the model computes in float32.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from orchestrator_stages.demos.chat.words import IMAGE, make_tokenizer

transformers: Any = importlib.import_module("transformers")

FOLDER = Path(__file__).with_name("checkpoint")

SIDE, PATCH = 48, 16
"""Height and width of a picture as the model sees it, and of each patch of it, in pixels."""

WIDTH, HEADS = 96, 4
"""Of the vision tower and of the text model alike."""

VISION_LAYERS, TEXT_LAYERS = 2, 4
"""What is beside a shape takes more layers to find than what a cell shows does."""

TOKENS = 512
"""Length of a conversation, at most: nine tokens of the picture and about ten for each question with its answer."""


def make_config(tokenizer: Any) -> Any:
    """Returns the sizes of the model, a ``LlavaConfig``, whose words are those of ``tokenizer``."""
    # The tower has no class token and no head: each patch is one token of the text model, as the projector gives it.
    vision = transformers.SiglipVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=VISION_LAYERS,
        num_attention_heads=HEADS,
        image_size=SIDE,
        patch_size=PATCH,
        vision_use_head=False,
    )
    text = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=TEXT_LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=TOKENS,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
        initializer_range=0.06,
    )
    return transformers.LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=(SIDE // PATCH) ** 2,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        tie_word_embeddings=True,
    )


def make_processor() -> Any:
    """Returns what turns a conversation and its picture into the inputs of the model, a ``LlavaProcessor``."""
    # From 5.2x on the name without an ending asks for torchvision.
    pillow = getattr(transformers, "SiglipImageProcessorPil", None)
    image_processor = transformers.SiglipImageProcessor if pillow is None else pillow
    tokenizer = make_tokenizer()
    return transformers.LlavaProcessor(
        image_processor(size={"height": SIDE, "width": SIDE}),
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="full",
        chat_template=tokenizer.chat_template,
    )


def load_model() -> Any:
    """Returns the trained model, a ``LlavaForConditionalGeneration``, in float32 and ready for inference."""
    return transformers.LlavaForConditionalGeneration.from_pretrained(FOLDER, dtype="float32").eval()
