"""Seeing what goes over a connection: one line, or JSON object, for each request and its answer.

`recorder` notes the bytes while they pass, in the process that serves, and hands them to a process
of its own (`writer`), which decodes (`decode`, `names`), pairs (`exchanges`) and prints (`text`,
`jsonl`) them.  `summary` counts what a trace has.  May import recuse.wire only.
"""
