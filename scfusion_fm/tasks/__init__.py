"""Fine-tuning: cells of a task, where a head starts, the trainer, and what is left of a run."""
