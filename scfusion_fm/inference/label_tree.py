"""Cell types in a hierarchy that the user gives: identifiers, and the parent where a label is too uncertain.

Letters: n cells, K classes.
"""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from scfusion_fm.untrusted.checksums import read_bounded

COLUMNS = ("label", "ontology_id", "parent")
LARGEST_FILE = 1 << 24
MOST_LEVELS = 100


@dataclass(frozen=True)
class LabelTree:
    """
    Labels, their identifiers and their parents.

    Attributes
    ----------
    ids
        Identifier by label, such as CL:0000236; '' for none.
    parents
        Label of the parent by label; '' at the top.
    """

    ids: dict[str, str]
    parents: dict[str, str]

    @classmethod
    def load(cls, path: Path, classes: list[str]) -> "LabelTree":
        """
        Read a table with tabs and the columns `label`, `ontology_id` and `parent` that names all classes of a model.

        Raises
        ------
        ValueError
            If the file is missing, a column, class or parent is, a label is there twice, or one is its own ancestor.
        """
        if not path.is_file():
            raise ValueError(f"`--ontology` must be a TSV file, got {str(path)!r}, which does not exist.")
        try:
            content = io.BytesIO(read_bounded(path, LARGEST_FILE))
            table = pd.read_csv(content, sep="\t", dtype=str, keep_default_na=False)
        except ValueError as error:  # those of pandas and of the decoder are, too
            raise ValueError(f"`--ontology` must be a TSV file, got {str(path)!r}: {str(error).strip()}") from error
        if not set(COLUMNS) <= set(table):
            raise ValueError(f"`--ontology` must have the columns {list(COLUMNS)}, got {list(table)} in {str(path)!r}.")
        labels, ids, parents = (table[name].str.strip() for name in COLUMNS)
        twice = sorted(set(labels[labels.duplicated()]))
        unknown = sorted((set(parents) - set(labels) - {""}) | (set(classes) - set(labels)))
        if twice or unknown:
            raise ValueError(
                "`--ontology` must have one row for each class of the model and for each parent, got "
                f"{'two for ' + str(twice) if twice else 'none for ' + str(unknown)} in {str(path)!r}."
            )
        tree = cls(dict(zip(labels, ids, strict=True)), dict(zip(labels, parents, strict=True)))
        for label in classes:
            tree.ancestors(label)
        return tree

    def ancestors(self, label: str) -> list[str]:
        """
        Give a label, its parent, and so on to the top.

        Raises
        ------
        ValueError
            If the label is its own ancestor, or has too many.
        """
        found: list[str] = []
        while label:
            if label in found:
                raise ValueError(f"`--ontology` must be a tree, got {label!r} as an ancestor of its own.")
            if len(found) == MOST_LEVELS:
                raise ValueError(f"`--ontology` must have at most {MOST_LEVELS} levels, got more above {found[0]!r}.")
            found.append(label)
            label = self.parents[label]
        return found

    def back_off(
        self, probabilities: ArrayLike, classes: list[str], min_probability: float
    ) -> tuple[NDArray[np.object_], NDArray[np.float64]]:
        """
        Give the most probable class of each cell, or its first ancestor that is probable enough.

        Parameters
        ----------
        probabilities
            (n, K), rows add up to 1.
        classes
            (K,) names of the columns.
        min_probability
            What a label needs, in [0, 1]; that of a parent is the sum over the classes at and below it.

        Returns
        -------
        (n,) labels and (n,) their probabilities; '' and NaN where not even the top is probable enough.

        Raises
        ------
        ValueError
            If the probability is out of range.
        """
        if not 0 <= min_probability <= 1:
            raise ValueError(f"`--min-probability` must lie in [0, 1], got {min_probability}.")
        probabilities = np.asarray(probabilities, np.float64)
        lines = [self.ancestors(name) for name in classes]
        labels, found = np.full(len(probabilities), "", dtype=object), np.full(len(probabilities), np.nan)
        best = probabilities.argmax(1)
        for place, line in enumerate(lines):
            open_rows = np.flatnonzero(best == place)
            for label in line:
                below = [label in other for other in lines]
                total = probabilities[open_rows][:, below].sum(1)
                enough = total >= min_probability - 1e-9
                labels[open_rows[enough]], found[open_rows[enough]] = label, total[enough]
                open_rows = open_rows[~enough]
        return labels, found
