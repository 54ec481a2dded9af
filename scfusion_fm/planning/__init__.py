"""`scfusion plan`: whether a pretraining run fits its GPUs, and how long it takes."""
