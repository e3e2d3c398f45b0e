"""System calls of 32-bit programs."""
