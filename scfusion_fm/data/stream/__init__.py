"""
From an atlas to the batches of a rank.

Which cell comes when, whatever the ranks: `order`. Reading ahead with threads, and resuming: `loader`. Features and
masks: `collate`. The same stream as a data set of Hugging Face: `hugging_face`.
"""
