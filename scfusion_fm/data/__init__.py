"""
Cells, from files to batches.

A cell's way: a file is opened and its counts found (`files`), its names are understood (`vocabulary`), it becomes part
of an atlas (`prepare`, `atlas`), and is read in batches with masks (`stream`). Beside it: `fingerprints` know a cell
again, `inspect` tells what a file or an atlas holds.
"""
