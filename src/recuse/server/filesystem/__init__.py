"""Filesystems: what an author subclasses, and the session that serves them.

The authors' API is `filesystem`, `nodes`, `open_file` and `attributes`. `session` leads from the
protocol to it: `names`, `contents` and `file_calls` have the operations, `known` the numbers of
nodes, `listing` open directories, `passthrough` what opens of one file have to agree on, `notify`
what the kernel is told unasked.
"""
