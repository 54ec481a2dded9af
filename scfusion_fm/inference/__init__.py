"""
Use a model on the cells of a file.

One module for each command: `embed`, `annotate` (with the hierarchy of `label_tree`), `predict_protein`, `surprise`,
`seen`; what they share is a `job`, from the file that is read to the one that is written. Underneath, `model_directory`
loads a model, `model_files` reads what needs no torch, `inputs` brings a file onto the vocabulary of a model, and
`batches` runs the model over cells. `export` writes a model directory.

Public, from `scfusion_fm` itself, are `load_pretrained` and `read_aligned`.
"""
