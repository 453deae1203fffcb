"""Stages compiled, in parallel where that pays, and loaded onto their devices."""
