"""`python -m benchmarks`: recuse against libfuse and others, the same work on each.

`workloads` says what is timed (benchmarks/client.c does it), `peers` on what, `runner` runs it,
`extras` measures what is not a time per operation, `samples` holds the figures, `goals` judges them
and `report` writes them down.
"""
