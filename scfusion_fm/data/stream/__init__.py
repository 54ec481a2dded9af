"""From an atlas to the batches of a rank: order of cells, reading ahead, features and masks."""
