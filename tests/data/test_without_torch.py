"""Whoever prepares or examines data needs no torch."""

import subprocess
import sys

PROGRAM = """
import sys
from importlib import import_module
from pkgutil import walk_packages

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "datasets"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Block())
import scfusion_fm.data
found = [module.name for module in walk_packages(scfusion_fm.data.__path__, "scfusion_fm.data.")]
found = [name for name in found if not name.startswith("scfusion_fm.data.stream.")]
for name in found:
    import_module(name)
print(len(found))
"""


def test_all_rooms_of_data_but_the_stream_are_loaded_without_torch():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 30
