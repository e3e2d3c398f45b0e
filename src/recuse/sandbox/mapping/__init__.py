"""Memory that programs have mapped, and when they let it go."""
