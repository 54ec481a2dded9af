"""Predicting one modality from the other."""
