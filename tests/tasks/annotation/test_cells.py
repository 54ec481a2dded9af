"""Labels of cells: what is missing is no class."""

import pandas as pd
import pytest
from missing_values import WITHOUT_VALUE

from scfusion_fm.tasks.annotation.cells import drop_rare_classes, read_labels


@pytest.mark.parametrize("unlabelled", [[], ["unknown", "nan", ""]])
@pytest.mark.parametrize("missing", list(WITHOUT_VALUE))
def test_a_missing_label_is_no_class_whatever_else_means_unlabelled(missing, unlabelled):
    labels = read_labels(pd.DataFrame({"type": WITHOUT_VALUE[missing]}), "type", unlabelled)
    assert labels[1] == ""
    assert "" not in labels[[0, 2]]
    assert drop_rare_classes(labels, 1)[1] == {}
