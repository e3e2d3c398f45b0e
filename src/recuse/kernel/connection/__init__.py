"""The connection between system calls and one server, and the requests on it."""
