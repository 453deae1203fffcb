"""Many requests one after the other, partial results, and progress."""
