"""
Know a cell again, whatever it is called: by hashes of its counts.

The hash: `cells`. What a model was trained on, and whether cells of a file were among it: `seen`. Cells that two files
share: `shared`.
"""
