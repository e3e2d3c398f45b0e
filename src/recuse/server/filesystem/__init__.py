"""Filesystems: what an author subclasses, and the session that serves them.

Authors have two levels, which are served alike (`served`). One is `filesystem`, `nodes` and
`open_file`: a tree of objects. The other is `inodes`: a method for each operation. Both use the
values in `attributes`.

`session` connects the protocol to either `level`, after `init` has agreed with the kernel half on
what is used. `requests` takes messages apart, `answers` and `encoding` put them together, and
`extensions` reads what comes with some of them.

`node_level` has the operations on nodes, in `names`, `contents` and `file_calls`, with what they
share in `state`. `known` has the numbers of nodes, `listing` the open directories.

`device_node` is a device as a node, which `device_opens` opens in several `steps`; `device_tree` is
a filesystem of such nodes alone.

`passthrough` has what several opens of one file must agree on, `undelivered` what is taken back if
the kernel half did not get an answer, and `notify` sends what it did not ask for.
"""
