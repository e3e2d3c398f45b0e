"""Filesystems in the sandbox: trees, names and open files over the kernel half's."""
