"""Kind: taken over as something else. A model that was changed, or lacks something, is refused by the part."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from orchestrator import GraphError
from orchestrator_stages import from_transformers
from orchestrator_stages.generation.options import refuse_options
from tests.stages.seq2seq.by_hand import ByHand
from tests.stages.tiny_models import START, generated, inputs, texts, tiny, transformers

NEW = 7


def run(model: Any, request: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return ByHand("bart", {}, model, is_other=True).run(request)


class Louder(transformers.BartForConditionalGeneration):
    """Says everything twice as loud."""

    def forward(self, *args: Any, **options: Any) -> Any:
        outputs = super().forward(*args, **options)
        outputs.logits = -outputs.logits
        return outputs


class Named(transformers.BartForConditionalGeneration):
    """Replaces nothing."""


def of(kind: Any) -> Any:
    model = tiny("bart")
    other = kind(model.config)
    other.load_state_dict(model.state_dict())
    other.generation_config = copy.deepcopy(model.generation_config)
    other.generation_config.max_new_tokens = NEW
    return other.eval()


def test_a_subclass_that_replaces_a_method_is_refused_and_another_is_not():
    with pytest.raises(GraphError, match="Louder replaces 'forward'"):
        from_transformers(of(Louder))
    for method in (
        "generate",
        "prepare_inputs_for_generation",
        "_sample",
        "_get_logits_processor",
        "get_encoder",
    ):
        kind = type("Other", (transformers.BartForConditionalGeneration,), {method: lambda self: None})
        with pytest.raises(GraphError, match=f"Other replaces '{method}'"):
            from_transformers(of(kind))
    model, request = of(Named), inputs("bart")
    assert run(model, request).equal(generated(model, request))


def test_classes_are_known_by_identity_not_by_type_or_name():
    class T5ForConditionalGeneration(nn.Module):
        """Has the name and the type of a model that is supported, and neither its methods nor its parts."""

        config = transformers.T5Config()
        generation_config = transformers.GenerationConfig()

    with pytest.raises(GraphError, match="from_transformers does not support"):
        from_transformers(T5ForConditionalGeneration().eval())


def _hook(model: Any) -> None:
    model.model.decoder.layers[0].self_attn.register_forward_hook(lambda module, args, output: output)


def _forward(model: Any) -> None:
    layer = model.model.decoder.layers[1]
    layer.forward = lambda *args, **options: args[0]


def _layer(model: Any) -> None:
    class BartDecoderLayer(type(model.model.decoder.layers[0])):  # type: ignore[misc]
        """A layer of somebody else."""

    layer = BartDecoderLayer(model.config, layer_idx=0)
    model.model.decoder.layers[0] = layer.eval()


def _borrowed(model: Any) -> None:
    attention = tiny("marian").model.decoder.layers[0].self_attn
    model.model.decoder.layers[0].self_attn = attention


def _wrapped(model: Any) -> None:
    model.model.decoder.embed_positions = nn.Sequential(model.model.decoder.embed_positions).eval()


def _training(model: Any) -> None:
    model.model.decoder.layers[0].train()


def _attention(model: Any) -> None:
    model.model.decoder.config._attn_implementation = "flex_attention"


def _no_options(model: Any) -> None:
    model.generation_config = None


def _no_head(model: Any) -> None:
    model.lm_head = None


def _legacy(model: Any) -> None:
    model.config.num_beams = 3


def _quantised(model: Any) -> None:
    torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, inplace=True)
    model.eval()


@pytest.mark.filterwarnings("ignore")  # of quantising
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_hook, r"decoder\.layers\.0\.self_attn has the forward hook"),
        (_forward, r"decoder\.layers\.1 has a forward of its own"),
        (_layer, r"decoder\.layers\.0 is a .*BartDecoderLayer"),
        (_wrapped, r"generate\(\) of BartForConditionalGeneration fails on two short prompts: .*Sequential"),
        (_training, r"training mode \(model\.decoder\.layers\.0\)"),
        (_attention, "flex_attention"),
        (_no_options, "generation_config"),
        (_no_head, "projection to its vocabulary"),
        (_legacy, "num_beams"),
        (_quantised, "quantised"),
    ],
)
def test_a_model_that_was_changed_or_lacks_something_is_refused(change: Any, message: str):
    model = tiny("bart")
    change(model)
    with pytest.raises(GraphError, match=message):
        from_transformers(model)


def test_a_part_of_another_family_is_followed_since_the_forward_is_the_models_own():
    model, request = tiny("bart"), inputs("bart")
    _borrowed(model)
    model.generation_config.max_new_tokens = NEW
    assert not generated(model, request).equal(generated(tiny("bart"), request, max_new_tokens=NEW))
    assert run(model, request).equal(generated(model, request))


def test_what_prepares_nothing_is_refused():
    for option in ("tokenizer", "processor"):
        with pytest.raises(GraphError, match=f"{option}= is a {option} of transformers, not 't5-small'"):
            from_transformers(tiny("t5"), **{option: "t5-small"})


def test_a_captioner_without_cross_attention_is_refused():
    model = tiny("gpt2")
    model.decoder.config.add_cross_attention = False
    with pytest.raises(GraphError, match="add_cross_attention"):
        from_transformers(model)


@pytest.mark.parametrize("name", ["t5", "mt5"])
def test_a_float16_that_overflows_is_clamped_as_the_library_does_it(name: str):
    """Kind: a layer written anew misses what the library's does off the main path."""
    model = tiny(name)
    for block in model.decoder.block:
        block.layer[-1].DenseReluDense.wo.weight.data.mul_(6000.0)
    model, request = model.to(torch.float16), texts((4, 4, 4))
    model.generation_config.max_new_tokens = NEW
    tokens = generated(model, request)
    assert torch.isfinite(model(**request, decoder_input_ids=torch.full((3, 1), START)).logits).all()
    assert run(model, request).equal(tokens)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("penalty_alpha", 0.5),
        ("num_beam_groups", 2),
        ("prompt_lookup_num_tokens", 2),
        ("return_dict_in_generate", True),
        ("return_token_timestamps", True),
    ],
)
def test_options_that_change_tokens_otherwise_are_refused(option: str, value: Any):
    speech = option == "return_token_timestamps"
    with pytest.raises(GraphError, match=option) as raised:
        refuse_options({option: value}, speech=speech)
    assert raised.value.option == option
    assert "To go without, pass" in str(raised.value)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": 65}, r"64 tokens.*max_new_tokens=65"),
        ({"max_new_token": 3}, "'max_new_tokens'"),
        ({"do_sample": True, "temperature": 0.0}, "temperature"),
        ({"do_sample": True, "top_k": -1}, "top_k"),
        ({"do_sample": True, "top_p": 1.5}, "top_p"),
        ({"max_new_tokens": 5, "min_length": 9}, "min_length"),
        ({"tokens": (16, 65)}, "65"),
        ({"messages": True}, "messages="),
        ({"num_beams": 2, "num_return_sequences": 3}, "num_return_sequences"),
    ],
)
def test_numbers_that_cannot_be_are_refused(options: dict[str, Any], match: str):
    with pytest.raises(GraphError, match=match):
        from_transformers(tiny("bart"), **options)


def test_families_that_are_not_supported_are_told_which_are():
    unsupported = [
        transformers.T5Model(
            transformers.T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
        ),
        nn.Linear(2, 2),
        "t5-small",
    ]
    for model in unsupported:
        with pytest.raises(GraphError, match=r"T5.*BART.*Whisper.*VisionEncoderDecoder"):
            from_transformers(model)


def test_an_unknown_language_is_refused():
    with pytest.raises(GraphError, match="language"):
        from_transformers(tiny("whisper"), language="de")


def test_lengths_of_texts_are_no_option_of_a_model_that_reads_none():
    with pytest.raises(GraphError, match="tokens"):
        from_transformers(tiny("whisper"), tokens=(16,))
