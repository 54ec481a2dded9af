"""
What held-out cells tell of a model: arrays in, numbers out.

`classifier` fits temperatures and thresholds, `unknown` scores cells of types that a classifier does not know,
`fit_intervals` makes the conformal intervals of proteins that `intervals` serves, and `percentiles` places a cell among
reference cells. The fits of models that go with them are in `scfusion_fm.tasks`.
"""
