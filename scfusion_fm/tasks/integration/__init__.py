"""An embedding in which batches mix and cell types stay apart."""
