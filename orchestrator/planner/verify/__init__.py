"""The independent checker: the finished plan, proven again from its tables, steps, edges, loops and programs."""
