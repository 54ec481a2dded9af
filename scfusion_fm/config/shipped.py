"""The files of settings that come with the package: `configs/` of the repository, and of the wheel."""

import shutil
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
FOLDER = "configs"
SUFFIXES = (".yaml", ".json")


def shipped_settings() -> Path:
    """Give the directory with the files of settings: in the installed package, or in the clone that it runs from."""
    return next((place for place in (_PACKAGE / FOLDER, _PACKAGE.parent / FOLDER) if place.is_dir()), _PACKAGE / FOLDER)


def find_settings(path: str | Path) -> Path:
    """Give a file of settings; where there is none of its name, the one `configs/...` that comes with the package."""
    path = Path(path)
    if path.exists() or path.parts[:1] != (FOLDER,) or ".." in path.parts:
        return path
    ours = shipped_settings().joinpath(*path.parts[1:])
    return ours if ours.is_file() else path


def list_settings_files() -> list[str]:
    """List the files by the names that `--config` takes."""
    place = shipped_settings()
    return sorted(str(Path(FOLDER) / file.relative_to(place)) for file in place.rglob("*.*") if file.suffix in SUFFIXES)


def copy_settings(directory: Path) -> None:
    """
    Copy the files, so that they can be changed.

    Raises
    ------
    ValueError
        If something has the name of the directory.
    """
    if directory.exists():
        raise ValueError(f"`--copy` must be a new directory, got {str(directory)!r}, which exists. Name another one.")
    shutil.copytree(shipped_settings(), directory)
