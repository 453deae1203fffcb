"""Values that the next run of a program would overwrite, and the ways round: order, a second program, the host."""
