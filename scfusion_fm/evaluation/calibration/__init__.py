"""What held-out cells tell of a model: temperatures, thresholds, intervals, percentiles."""
