"""
Fine-tuning, for the scripts and for `scfusion evaluate` alike.

A task has a folder: `annotation` and `cross_modal`, each with its `cells`, the `fit` of a model, the `calibrate` that
follows it (temperatures and thresholds; intervals, for known groups and for new ones), and the `baselines` on the same
cells. What they share: `weights` to begin with, where heads start (`starts`), the `trainer` with its loop
(`epochs`), `dropout`, `loss` and `adapters`, `ranks` that do it together, the `memory` of a run that was killed,
`splits` of a file, test cells that were `seen`, and `results`.
"""
