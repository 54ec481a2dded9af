"""Know the same cells again: in two files, or among those that a model was trained on."""
