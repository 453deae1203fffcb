"""Encoder-decoder models of transformers as pipelines: the encoder once, then a loop that makes a token each time.

    tables          the options of generate(): followed, refused, without effect
    options         those of a model and its user, as generate() reads them
    rules           what they say, read into rules by position
    forward         the family's own forward: its encoder, and its decoder over a cache of fixed size
    trial           both on fake tensors: can they be followed, and what is carried?
    families        which models are supported, and what they read
    checks          what is refused of them: changes, missing parts
    choose          the next token, most likely or drawn
    loop            the loop
    host, prepare   what is done on the host before and after
    build           `from_transformers`

Needs the extra `transformers`.
"""
