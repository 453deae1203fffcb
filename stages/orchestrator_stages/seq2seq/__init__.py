"""Encoder-decoder models of transformers as pipelines: the encoder once, then a loop that makes a token each time.

    tables          the options of generate(): followed, refused, without effect
    options         those of a model and its user, as generate() reads them
    rules           what they say, read into rules by position
    attention       attention of one token over a cache of fixed length
    decoder         a decoder without state, and what prepares its loop
    bart t5 gpt2    what families of decoders are made of
    encoders        encoders of text, audio and pictures
    families        which models are supported
    checks          what is refused of them: changes, missing parts
    choose          the next token, most likely or drawn
    loop            the loop
    host, prepare   what is done on the host before and after
    build           `from_transformers`

Needs the extra `transformers`.
"""
