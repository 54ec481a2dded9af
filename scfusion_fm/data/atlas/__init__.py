"""
The atlas: many data sets with different panels in one AnnData store on zarr v3.

`atlas` reads cells by row and knows what each measured; `shards` reads byte ranges of zarr arrays here or in an object
store; `packed` makes sparse cells dense. It is written by `scfusion_fm.data.prepare`.
"""
