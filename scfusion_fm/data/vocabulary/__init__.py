"""
Which genes and proteins there are, in genome order, and what files call them.

Names become Ensembl ids and proteins in `resolve`, by the spellings of `names` (isotype controls and hashtags are
recognised there, and dropped because they resolve to nothing) and the tables of `reference`; the list that a model
knows is made in `vocabulary`.
"""
