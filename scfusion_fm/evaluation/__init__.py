"""Splits of the truth: metrics, baselines with the same labels, plots and the report."""
