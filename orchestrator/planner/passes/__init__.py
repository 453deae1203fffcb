"""The passes, one file and one verb each."""
