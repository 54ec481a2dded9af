"""scFusionTTT: a test-time-training foundation model for paired single-cell RNA and surface protein."""
