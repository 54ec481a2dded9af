"""
Pretraining from top to bottom, for `scfusion pretrain` and `pretrain/run.py` alike, and the export of its checkpoints.

Here model, data and training meet: `run` hands each of them what it needs from the others.
"""
