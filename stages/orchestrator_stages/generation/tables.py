"""Which options of ``generate()`` are followed, which change nothing here, and which are refused.

Together they are all that the library knows; one of a later version is refused unless it has its default.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = [
    "FOLLOWED",
    "FOLLOWED_SPEECH",
    "REFUSED",
    "REFUSED_SPEECH",
    "UNREAD",
    "UNREAD_SPEECH",
]

#: Options that change the tokens in ways that are not supported, each with the values that change nothing.
REFUSED: Mapping[str, tuple[Any, ...]] = {
    "assistant_early_exit": (),
    "cache_implementation": ("static", "dynamic", "offloaded", "offloaded_static", "hybrid"),
    "constraints": (),
    "continuous_batching_config": (),
    "dola_layers": (),
    "force_words_ids": (),
    "is_assistant": (False,),
    "num_beam_groups": (1,),
    "penalty_alpha": (),
    "prompt_lookup_num_tokens": (),
    "return_dict_in_generate": (False,),
    "token_healing": (False,),
    "use_mtp": (False,),
    "watermarking_config": (),
}

#: The same for those that only Whisper has.
REFUSED_SPEECH: Mapping[str, tuple[Any, ...]] = {
    "compression_ratio_threshold": (),
    "condition_on_prev_tokens": (False,),
    "force_unique_generate_call": (False,),
    "logprob_threshold": (),
    "monitor_progress": (),
    "no_speech_threshold": (),
    "prompt_condition_type": ("first-segment",),
    "prompt_ids": (),
    "return_segments": (False,),
    "return_token_timestamps": (False,),
    "stop_strings": (),
}

#: Options that are followed, most of them by the library's own classes.
FOLLOWED = frozenset(
    {
        *("bad_words_ids", "begin_suppress_tokens", "bos_token_id", "decoder_start_token_id", "do_sample"),
        *(
            "diversity_penalty",
            "early_stopping",
            "encoder_no_repeat_ngram_size",
            "encoder_repetition_penalty",
        ),
        *("eos_token_id", "epsilon_cutoff", "eta_cutoff", "exponential_decay_length_penalty"),
        *("forced_bos_token_id", "forced_eos_token_id", "guidance_scale", "length_penalty"),
        *("max_length", "max_new_tokens"),
        *("max_time", "min_length", "min_new_tokens", "min_p", "no_repeat_ngram_size", "num_beams"),
        *("num_return_sequences", "pad_token_id", "remove_invalid_values", "renormalize_logits"),
        *("repetition_penalty", "sequence_bias", "stop_strings", "suppress_tokens", "temperature"),
        *("top_h", "top_k", "top_p", "typical_p"),
    }
)

#: The same for those that only Whisper has.
FOLLOWED_SPEECH = frozenset(
    {
        "forced_decoder_ids",
        "is_multilingual",
        "lang_to_id",
        "language",
        "max_initial_timestamp_index",
        "no_timestamps_token_id",
        "return_timestamps",
        "task",
        "task_to_id",
    }
)

#: Options that change no token of the ways to choose one that are supported: how the work is done, what comes with the
#: tokens, and numbers that only a refused option reads.
UNREAD = frozenset(
    {
        *("assistant_confidence_threshold", "assistant_ensemble_weight", "assistant_lookbehind"),
        *("cache_config", "compile_config", "disable_compile", "low_memory", "max_cache_len"),
        *("max_matching_ngram_size", "num_assistant_tokens", "num_assistant_tokens_schedule"),
        *(
            "output_attentions",
            "output_hidden_states",
            "output_logits",
            "output_scores",
            "prefill_chunk_size",
        ),
        *("speculation_type", "target_lookbehind", "transformers_version", "use_cache"),
        *("_from_model_config", "_original_object_hash"),
    }
)

#: The same for those that only Whisper has.
UNREAD_SPEECH = frozenset(
    {
        *(
            "alignment_heads",
            "median_filter_width",
            "num_frames",
            "num_segment_frames",
        ),
        *("prev_sot_token_id", "time_precision", "time_precision_features"),
    }
)
