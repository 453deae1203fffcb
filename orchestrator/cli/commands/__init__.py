"""The commands, a file each; what they share lies beside this folder."""
