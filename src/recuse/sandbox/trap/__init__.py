"""Trapped system calls: which ones come, how they arrive, and how each gets its one answer."""
