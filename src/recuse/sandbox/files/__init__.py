"""What programs have open: one class for each kind of file, and the descriptors that they hold."""
