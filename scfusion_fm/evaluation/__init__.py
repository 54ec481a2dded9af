"""How good the predictions are: metrics, baselines given the same cells and labels, plots, report."""
