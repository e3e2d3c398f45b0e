"""Paths: what is in the tree besides the machine's own files, and how a thread sees it."""
