"""Simple methods that get the same cells and labels as the model."""
