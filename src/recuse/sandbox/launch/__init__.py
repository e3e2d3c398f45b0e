"""Starting a program under the filter, and its first process."""
