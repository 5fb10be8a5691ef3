"""The kernel side: the only part that knows FUSE."""
