"""What the library costs, next to the same work written by hand: `python -m tests.bench`, or `make bench`."""
