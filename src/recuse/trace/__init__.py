"""Shows the messages of a connection: a line, or JSON object, for each request and its answer.

`recorder` records the bytes as they pass, in the process that serves. It hands them to a separate
process (`writer`), which decodes (`decode`, `names`), pairs (`exchanges`) and prints (`text`,
`jsonl`) them. `summary` counts what a trace has. This package may import only recuse.wire.
"""
