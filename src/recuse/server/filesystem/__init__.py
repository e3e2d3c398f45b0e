"""Filesystems: what an author subclasses, and the session that serves them.

`nodes` is the authors' API, `session` its way to the protocol: `names`, `contents` and `attributes`
have the operations, `known` the numbers of nodes, `listing` open directories.
"""
