"""What this machine can do, and what a recipe costs on it."""
