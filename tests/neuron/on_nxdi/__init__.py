"""Checks that run on the real classes of NxD Inference; `tests/neuron/harness.py` runs them."""
