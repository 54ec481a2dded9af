"""
Check what is in a wheel: all that the code of the clone finds beside itself, and nothing that is not for users.

python scripts/check_wheel.py dist
"""

import argparse
import email
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
MOVED = {"configs/": "scfusion_fm/configs/", "data/": "scfusion_fm/demo/"}
LARGEST = 60 * 2**20  # bytes; the registry takes 100 MB


def main() -> None:
    """Compare the only wheel of a directory with the files that git keeps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="with one wheel and one source distribution")
    directory = parser.parse_args().directory
    (wheel,), (source,) = directory.glob("*.whl"), directory.glob("*.tar.gz")
    kept = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    wanted = {place_in_wheel(name) for name in kept} - {None}
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        told = email.message_from_bytes(archive.read(metadata))
    problems = [f"{name} is missing" for name in sorted(wanted - held)]
    problems += [f"{name} should not be in it" for name in sorted(held - wanted)]
    problems += [
        f"{file} is larger than {LARGEST:,} bytes" for file in (wheel, source) if file.stat().st_size > LARGEST
    ]
    for problem in problems:
        print(f"{wheel.name}: {problem}", file=sys.stderr)
    if problems:
        sys.exit(1)
    size = wheel.stat().st_size / 2**20
    print(f"{wheel.name}: {len(held)} files, {size:.0f} MiB, extras {', '.join(told.get_all('Provides-Extra'))}")


def place_in_wheel(name: str) -> str | None:
    """Give where a file of the clone is in the wheel; None for one that is not for users."""
    if name.startswith("scfusion_fm/"):
        return name
    return next((new + name.removeprefix(old) for old, new in MOVED.items() if name.startswith(old)), None)


if __name__ == "__main__":
    main()
