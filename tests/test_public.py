"""What the package lists: loaded when it is used, known to type checkers and to the Auto classes."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import scfusion_fm

HEAVY = "{'torch', 'transformers', 'numpy', 'pandas', 'anndata', 'zarr', 'omegaconf'} & sys.modules.keys()"
AUTO = "from transformers import AutoFeatureExtractor, AutoModel"
ORDERS = [
    pytest.param(f"import scfusion_fm\n{AUTO}", id="ours first"),
    pytest.param(f"{AUTO}\nimport scfusion_fm", id="theirs first"),
    # It imports the Auto classes before it is ready, and our classes need both.
    pytest.param(f"import scfusion_fm\nimport transformers.modeling_utils\n{AUTO}", id="in between"),
]
USE = """
path = sys.argv[1]
model, extractor = AutoModel.from_pretrained(path), AutoFeatureExtractor.from_pretrained(path)
assert type(model) is scfusion_fm.ScFusionTTTModel
assert type(extractor) is scfusion_fm.ScFusionTTTFeatureExtractor
"""


def in_a_new_process(code, *arguments):
    command = [sys.executable, "-c", f"import sys\n{code}", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_there():
    for name in scfusion_fm.__all__:
        found = getattr(scfusion_fm, name)  # a class or function, a module, or the one object of its class
        assert getattr(found, "__name__", type(found).__name__.lower()).rpartition(".")[2] == name
    assert {*scfusion_fm.__all__, "__version__"} <= set(dir(scfusion_fm))
    with pytest.raises(AttributeError, match="no attribute 'ScFusionTTTForEverything'"):
        _ = scfusion_fm.ScFusionTTTForEverything


def test_type_checkers_see_the_same_names():
    (block,) = (n for n in ast.parse(Path(scfusion_fm.__file__).read_text()).body if isinstance(n, ast.If))
    told = {name.asname: f"{n.module}.{name.name}" for n in block.body for name in n.names}
    homes = {name: f"scfusion_fm.{home}.{name}" for name, home in scfusion_fm._HOMES.items()}
    homes |= {name: f"scfusion_fm.{name}" for name in scfusion_fm._MODULES}
    assert told == homes
    assert (Path(scfusion_fm.__file__).parent / "py.typed").is_file()


def test_importing_the_package_loads_nothing_heavy():
    in_a_new_process(f"import scfusion_fm\nassert not {HEAVY}, {HEAVY}")


@pytest.mark.parametrize("imports", ORDERS)
def test_auto_classes_know_ours_whatever_is_imported_first(imports, model_dir):
    in_a_new_process(f"{imports}{USE}", model_dir)
