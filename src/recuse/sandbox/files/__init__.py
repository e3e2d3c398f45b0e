"""What programs have open: one class for each kind of file, the table of them, and their ends."""
