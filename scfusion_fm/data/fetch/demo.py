"""The cells of the demo, which come with the package: 1,262 of human blood, by TEA-seq."""

import shutil
from pathlib import Path

from scfusion_fm.notices import tell

DEMO = "demo"
FILE = "demo_teaseq_pbmc.h5mu"
TITLE = "TEA-seq of human blood, comes with the package"
LICENCE, REFERENCE = "Apache-2.0", "Swanson et al. 2021, eLife 10:e63632"
_PACKAGE = Path(__file__).parents[2]


def find_demo() -> Path:
    """Give the file: in the installed package, or in the clone that it runs from."""
    installed = _PACKAGE / "demo" / FILE
    return installed if installed.exists() else _PACKAGE.parent / "data" / FILE


def copy_demo(directory: Path) -> Path:
    """Put a copy where the settings of the demo look for it: `data`, of the directory that they are run in."""
    output = directory / FILE
    if output.exists():
        tell(f"{output} is there")
        return output
    directory.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(find_demo(), output)
    tell(f"{output}: {TITLE}. {LICENCE}; cite {REFERENCE}")
    return output
