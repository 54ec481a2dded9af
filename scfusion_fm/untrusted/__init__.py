"""
Files that others made: read with bounds, checked field by field, and shown without control characters.

`json_file` reads JSON, `rules` checks it against the schema of a file, `arrays_file` and `weights_file` read `.npz` and
`.safetensors` without believing their sizes, `checksums` compares files with SHA256SUMS, and `text` shows names.
"""
