"""
`scfusion prepare`: from files to an atlas, in steps that can be interrupted.

The steps, and what happens after a kill: `job`, with its `plan`. What goes in, and who is held out: `sources`. Cells
aligned and shuffled: `pieces`. The zarr store, chunk by chunk: `store`. Manifest, checksums, publication: `merge`.
Made-up cells: `synthetic`, and atlases of them: `synthesize`.
"""
