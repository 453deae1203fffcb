"""Models of transformers that generate, as pipelines: by the model's own forward and a cache of fixed size.

    cache           cache layers whose tensors have one size from the first token to the last
    state           the tensors that a cache holds, and a cache that holds other tensors in their places

Nothing here is written for a family: what a model keeps between two tokens is whatever its forward puts into the cache.

Needs the extra `transformers`.
"""
