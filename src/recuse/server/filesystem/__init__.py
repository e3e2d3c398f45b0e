"""Filesystems: what an author subclasses, and the session that serves them.

The authors' API is `filesystem`, `nodes`, `open_file` and `attributes`. `session` connects the
protocol to it. `names`, `contents` and `file_calls` have the operations. `known` has the numbers of
nodes, `listing` the open directories. `passthrough` has what several opens of one file must agree
on, and `notify` sends what the kernel did not ask for.
"""
