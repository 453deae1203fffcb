"""Adapters where two ends differ, steps in order, regions, and the words that explain them."""
