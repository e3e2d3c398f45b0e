"""The commands: they find out what is wanted, call the rooms below, and say what failed.

Everything that a command needs is imported when it runs, so that the others start quickly.
"""
