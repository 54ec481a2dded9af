"""Labels that are too uncertain go up to the first ancestor that is certain enough."""

import numpy as np
import pytest

from scfusion_fm.inference.label_tree import LabelTree

CLASSES = ["B", "CD4 T", "CD8 T", "Mono"]
TABLE = [
    "label\tontology_id\tparent",
    "cell\tCL:0000000\t",
    "lymphocyte\tCL:0000542\tcell",
    "T\tCL:0000084\tlymphocyte",
    "B\tCL:0000236\tlymphocyte",
    "CD4 T\tCL:0000624\tT",
    "CD8 T\tCL:0000625\tT",
    "Mono\t\t",
]


def write(path, rows):
    path.write_text("\n".join(rows) + "\n")
    return path


def test_parents_have_the_sum_of_their_children(tmp_path):
    tree = LabelTree.load(write(tmp_path / "tree.tsv", TABLE), CLASSES)
    assert tree.ancestors("CD8 T") == ["CD8 T", "T", "lymphocyte", "cell"]
    assert tree.ids["B"] == "CL:0000236"
    shares = np.array(
        [
            [0.1, 0.7, 0.1, 0.1],
            [0.1, 0.4, 0.4, 0.1],
            [0.3, 0.35, 0.25, 0.1],
            [0.1, 0.3, 0.2, 0.4],
            [0.3, 0.3, 0.1, 0.3],
        ]
    )
    labels, found = tree.back_off(shares, CLASSES, 0.6)
    assert list(labels) == ["CD4 T", "T", "T", "", "lymphocyte"]
    np.testing.assert_allclose(found, [0.7, 0.8, 0.6, np.nan, 0.7])
    assert list(tree.back_off(shares, CLASSES, 0.0)[0]) == ["CD4 T", "CD4 T", "CD4 T", "Mono", "B"]
    assert list(tree.back_off(shares, CLASSES, 0.9)[0]) == ["lymphocyte"] * 3 + ["", ""]


def test_bad_tables_are_refused(tmp_path):
    path = tmp_path / "tree.tsv"
    with pytest.raises(ValueError, match=r"`--ontology` must be a TSV file, got .*does not exist"):
        LabelTree.load(path, CLASSES)
    path.write_text("")
    with pytest.raises(ValueError, match="`--ontology` must be a TSV file"):
        LabelTree.load(path, CLASSES)
    for rows, message in (
        (["label,ontology_id,parent"], "must have the columns"),
        ([*TABLE, "B\tCL:1\tcell"], r"one row for each class .* got two for \['B'\]"),
        (TABLE[:-1], r"got none for \['Mono'\]"),
        ([*TABLE, "x\t\ty"], r"got none for \['y'\]"),
        ([*TABLE, "a\tb\tc\td\te"], "must be a TSV file, got .*Error tokenizing data"),
        ([*TABLE[:-1], *(f"m{i}\t\tm{i + 1}" for i in range(100)), "m100\t\t", "Mono\t\tm0"], "at most 100 levels"),
        ([TABLE[0], "cell\t\tT", *TABLE[2:]], "must be a tree, got '[a-z]*' as an ancestor of its own"),
    ):
        with pytest.raises(ValueError, match=f"`--ontology` {message}" if message.startswith("must") else message):
            LabelTree.load(write(path, rows), CLASSES)
    tree = LabelTree.load(write(path, TABLE), CLASSES)
    with pytest.raises(ValueError, match=r"`--min-probability` must lie in \[0, 1\], got 2"):
        tree.back_off(np.eye(4), CLASSES, 2)
