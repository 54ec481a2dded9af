"""Scores of predictions and embeddings."""
