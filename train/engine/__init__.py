"""The training loop, its state on disk, recipes and command lines."""
