"""Data sets: where images come from and the shapes that a step draws."""
