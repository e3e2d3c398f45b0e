"""Memory that programs have mapped, and when they unmap it."""
