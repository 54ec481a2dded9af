"""The site tells of everything that is public. That it can be built is tested by building it: `make docs`."""

import re

from launch import ROOT

import scfusion_fm
from scfusion_fm import finetune, pl


def test_every_public_name_is_on_the_page_of_the_python_reference():
    told = re.findall(r"^   ([\w.]+)$", (ROOT / "docs" / "api.rst").read_text(), re.M)
    public = {name for name in scfusion_fm.__all__ if name not in scfusion_fm._MODULES}
    public |= {f"{module.__name__.rpartition('.')[2]}.{name}" for module in (finetune, pl) for name in module.__all__}
    assert sorted(told) == sorted(public)
