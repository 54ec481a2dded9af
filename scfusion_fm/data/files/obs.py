"""Bring the modalities of a file onto one list of cells."""

import pandas as pd


def check_obs_names(names: pd.Index, where: str) -> None:
    """Check that names of cells are unique.

    Raises
    ------
    ValueError
        If a name repeats or there is none.
    """
    if names.empty:
        raise ValueError(f"`obs_names` must name at least one cell, got none in {where}.")
    if not names.is_unique:
        repeated = names[names.duplicated()]
        raise ValueError(
            f"`obs_names` must be unique, got {repeated[0]!r} and {len(repeated) - 1:,} more repeated names "
            f"in {where}. Rename the cells, for example by appending the sample to the barcode."
        )


def merge_obs(shared: pd.DataFrame, modalities: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Merge the annotation of a MuData and of its modalities.

    Columns of the MuData come first, then those of the modalities. Copies with the prefix of a modality
    ('rna:batch') are dropped where one column can stand for all; where modalities differ in a column that the
    MuData lacks, each keeps its own under its prefix.
    """
    names = shared.index.astype(str).append([table.index.astype(str) for table in modalities.values()]).unique()
    prefixes = tuple(f"{key}:" for key in modalities)
    plain = [column for column in shared.columns if not str(column).startswith(prefixes)]
    columns = {column: shared[column].set_axis(shared.index.astype(str)).reindex(names) for column in plain}
    own: dict[str, dict[str, pd.Series]] = {}
    for key, table in modalities.items():
        for column in table.columns:
            if column not in columns:
                own.setdefault(column, {})[key] = table[column].set_axis(table.index.astype(str))
    for column, versions in own.items():
        merged = _merge_column(list(versions.values()), names)
        if merged is not None:
            columns[column] = merged
        else:
            columns |= {f"{key}:{column}": values.reindex(names) for key, values in versions.items()}
    for column in shared.columns:  # prefixed columns of which the modality itself has no copy
        key, _, bare = str(column).partition(":")
        if column not in columns and column not in plain and bare not in modalities[key].columns:
            columns[column] = shared[column].set_axis(shared.index.astype(str)).reindex(names)
    return pd.DataFrame(columns, index=names)


def _merge_column(versions: list[pd.Series], names: pd.Index) -> pd.Series | None:
    """Give one column for all cells, or None where two versions differ."""
    merged = versions[0]
    for other in versions[1:]:
        both = merged.index.intersection(other.index)
        left, right = merged[both], other[both]
        known = left.notna() & right.notna()
        agree = left[known].astype(object) == right[known].astype(object)
        if not (agree.all() and left.isna().equals(right.isna())):
            return None
        rest = other[~other.index.isin(merged.index)]
        if len(rest):
            merged = pd.concat([merged.astype(object), rest.astype(object)]).infer_objects()
    return merged.reindex(names)
