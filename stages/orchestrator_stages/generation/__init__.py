"""Models of transformers that generate, as pipelines: by the model's own forward and a cache of fixed size.

    versions        what versions of transformers do in different ways
    cache           cache layers whose tensors have one size from the first token to the last
    state           the tensors that a cache holds, and a cache that holds other tensors in their places
    tree            a copy of a model's modules over the same weights
    items           pictures and recordings among the tokens of a prompt
    encoder         what a model makes of one of them, as graphs: the encoder, and the projector behind it
    generator       a model as two functions of tensors: the prompt, and one more token
    token_loop      the loop that makes tokens, of any model
    choose          the next token, and what the sequences of tokens begin and end with
    chat            conversations as prompts, by the chat template of a tokenizer or processor
    arguments       what `from_transformers` was called with
    tables          the options of generate(): followed, refused, without effect
    options         what they say, and for a model that goes on with its prompt
    families        exceptions to the one way in which models are followed
    follow          a model as functions of tensors, as it is or with answers to what its forward asks
    selfcheck       whether a model generates here what it generates by itself
    static_forward  a forward that looks at no value
    checks          what is refused: models that generate nothing, or were changed
    continuation    a model that goes on with its prompt, as a pipeline
    conversation    the same with a cache that lives on from turn to turn
    item_continuation    the same with pictures or recordings in the prompt
    build           `from_transformers`

Nothing here is written for a family: what a model keeps between two tokens is whatever its forward puts into the cache.

Needs the extra `transformers`.
"""
