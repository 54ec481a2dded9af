"""The atlas: many data sets with different panels in one AnnData store on zarr v3."""
