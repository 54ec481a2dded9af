"""Names of the proteins and genes of a model as a file has them."""

from collections.abc import Sequence

import numpy as np

from scfusion_fm.data.files.align import AlignedFile


def name_proteins(names: Sequence[str], source: AlignedFile, wanted: Sequence[str] | None = None) -> dict[str, int]:
    """
    Name the proteins of a model as a file does, where it measures them.

    Parameters
    ----------
    names
        Names in the model.
    source
        The file over the vocabulary of the model.
    wanted
        Names in the file or in the model; all when None.

    Returns
    -------
    The place of each in `names`, by the name that it gets.

    Raises
    ------
    ValueError
        If a name is unknown, or there is none.
    """
    own = {name: name for name in names}
    if source.cells.adt is not None and source.alignment.adt is not None:
        pairs = zip(source.cells.adt.var.index.astype(str), source.alignment.adt, strict=True)
        for given, place in reversed(list(pairs)):  # of several columns that are summed, the first names
            name = source.vocabulary.protein_names[place] if place >= 0 else None
            # A name that another protein of the model has, or that no column of a file can have, is not taken.
            if name in own and "/" not in given and (given == name or given not in own):
                own[name] = given
    panel = {own[name]: place for place, name in enumerate(names)}
    if wanted is None:
        return panel
    known = {name: place for place, name in enumerate(names)} | panel
    unknown = [name for name in wanted if name not in known]
    if unknown or not wanted:
        raise ValueError(
            f"`proteins` must name proteins that the model predicts ({', '.join(names[:5])}, ...), got "
            f"{unknown or 'none'}."
        )
    return {own[names[known[name]]]: known[name] for name in wanted}


def list_proteins(source: AlignedFile, learned: Sequence[str] | None, wanted: Sequence[str] | None) -> dict[str, int]:
    """
    Give the proteins of a table: their places in the vocabulary by the names that they get.

    Parameters
    ----------
    source
        The file over the vocabulary of the model.
    learned
        What the model can impute, by its names; all of the vocabulary when None.
    wanted
        Names in the file or in the model; what the model can impute and what the file measured when None.

    Raises
    ------
    ValueError
        If a name is unknown, or there is none.
    """
    vocabulary = source.vocabulary.protein_names
    measured = np.any(source.panels.adt, axis=0)
    known = set(vocabulary if learned is None else learned)
    chosen = [place for place, name in enumerate(vocabulary) if measured[place] or name in known]
    found = name_proteins([vocabulary[place] for place in chosen], source, wanted)
    return {name: chosen[place] for name, place in found.items()}


def name_genes(source: AlignedFile) -> list[str]:
    """
    Name the genes of a model as a file does, where it measures them; no name twice.

    Genes that the file did not measure are named by symbol where the file names its own so, and else by Ensembl id.
    """
    ids, symbols = source.vocabulary.gene_ids, source.vocabulary.gene_symbols
    own: dict[int, str] = {}
    if source.cells.rna is not None and source.alignment.rna is not None:
        pairs = zip(source.cells.rna.var.index.astype(str), source.alignment.rna, strict=True)
        first = {given: int(place) for given, place in reversed(list(pairs)) if place >= 0 and "/" not in given}
        own = {place: given for given, place in first.items()}
    by_symbol = sum(name == ids[place] for place, name in own.items()) * 2 <= len(own)
    names, taken = [], set(own.values())
    for place, gene in enumerate(ids):
        usual = symbols[place] if by_symbol and symbols[place] and symbols[place] not in taken else gene
        names.append(own.get(place, usual))
        taken.add(names[-1])
    return names


def list_genes(source: AlignedFile, wanted: Sequence[str] | None) -> dict[str, int]:
    """
    Give the genes of a table: their places in the vocabulary by the names that they get; as `list_proteins`.

    Raises
    ------
    ValueError
        If a name is unknown, or there is none.
    """
    ids, symbols, names = source.vocabulary.gene_ids, source.vocabulary.gene_symbols, name_genes(source)
    panel = {name: place for place, name in enumerate(names)}
    if wanted is None:
        return panel
    known = {s: i for i, s in reversed(list(enumerate(symbols))) if s} | {g: i for i, g in enumerate(ids)} | panel
    unknown = [name for name in wanted if name not in known]
    if unknown or not wanted:
        raise ValueError(
            f"`genes` must name genes that the model knows ({', '.join(names[:5])}, ...), got {unknown or 'none'}."
        )
    return {names[known[name]]: known[name] for name in wanted}
