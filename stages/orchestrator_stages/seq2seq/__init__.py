"""Encoder-decoder models of transformers as pipelines: the encoder once, then a loop that makes a token each time.

    options         what the options of generate() say: what sequences begin with, how long they are
    forward         the family's own forward: its encoder, and its decoder over a cache of fixed size
    trial           both on fake tensors: can they be followed, and what is carried?
    families        which models are supported, and what they read
    checks          what is refused of them: changes, missing parts
    decoding        what sequences begin with, and the loop that makes their tokens
    host, prepare   what is done on the host before and after
    build           the pipeline

How tokens are chosen is in :mod:`orchestrator_stages.generation`, as for all models.

Needs the extra `transformers`.
"""
