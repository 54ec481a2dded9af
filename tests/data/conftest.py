"""Fixtures: one tiny CITE-seq file per format, and the real ones where there are any."""

import os
from pathlib import Path

import pytest
from make_files import WRITERS, make_adt, make_rna


@pytest.fixture(params=sorted(WRITERS))
def file_of_each_format(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """One file of each format, all with the same cells, genes and antibodies."""
    path = tmp_path / request.param
    WRITERS[request.param](path, make_rna(), make_adt())
    return path


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The directory of real data sets, where there is one."""
    directory = os.environ.get("SCFUSION_SHARED_DATA")
    if not directory:
        pytest.skip("SCFUSION_SHARED_DATA is not set")
    return Path(directory)
