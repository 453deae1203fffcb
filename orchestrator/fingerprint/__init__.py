"""A digest of all that a stage computes with: code, weights, settings; what an artifact is keyed by.

fingerprint   what of a stage goes in, and the digest
walk          from an object to its parts, each once
describer     what the two files below ask of the walk
records       parts of objects by their type
functions     functions, and what their code looks up
code          code objects and releases of packages
state         attributes, slots and what pickling would keep
tensors       contents of tensors
opaque        objects without content: equal to themselves only
paths         paths that count by where the code lies
"""

from orchestrator.fingerprint.fingerprint import digest, fingerprint

__all__ = ["digest", "fingerprint"]
