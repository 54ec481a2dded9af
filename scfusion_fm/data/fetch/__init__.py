"""`scfusion fetch`: public data sets by name."""
