"""Use a model on a file: embed, annotate, predict proteins, measure surprise; load and write models."""
