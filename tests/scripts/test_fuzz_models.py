"""Model directories with something changed are refused in one line, or give the same; the script tries many more."""

import importlib.util

import pytest
from launch import ROOT

spec = importlib.util.spec_from_file_location("fuzz_models", ROOT / "scripts/fuzz_models.py")
fuzz_models = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fuzz_models)


@pytest.mark.filterwarnings("ignore")
def test_changed_models_are_refused_in_one_line_or_give_the_same(tmp_path):
    targets = [t for t in fuzz_models.make_targets(tmp_path) if t.words[0] in ("embed", "seen", "annotate")]
    counts, wrong = fuzz_models.fuzz(targets, 14, 3, tmp_path)
    assert wrong == []
    assert sum(number for (what, _), number in counts.items() if what.startswith("sums")) == 14
    assert counts["sums kept", "refused"] > 2
