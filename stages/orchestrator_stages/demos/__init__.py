"""Ready pipelines, one module or package for each: examples to run, to read and to take stages from.

None of them imports another but ``sign``, which joins ``scene_text`` and ``translate``, and what reads a photo, which
takes the ``PhotoFrame`` of ``faces``. A pipeline whose weights are not part of this distribution says how to get them.
"""
