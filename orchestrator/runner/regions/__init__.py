"""Steps that run in parts: regions in chunks, maps in batches, and the handles that wait to be joined."""
