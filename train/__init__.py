"""Training: data, losses, one loop, and the scripts that make `weights/`."""
