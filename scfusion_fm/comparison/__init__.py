"""`scfusion evaluate`: models beside baselines, over folds, seeds and numbers of labels."""
