"""Engine, loop, checkpoints and logs of pretraining."""
