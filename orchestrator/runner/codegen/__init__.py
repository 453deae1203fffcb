"""A plan as straight-line Python: steps, loops, checks, and the function that requests come in by."""
