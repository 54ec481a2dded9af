"""What a command runs on, for reports of bugs: versions, devices and settings. Neither paths nor users are named."""

import os
import platform
import re
from importlib import metadata
from typing import Any

PACKAGE = "scfusion-fm"
# What a line of `--version` names.
MATTERING = ("torch", "transformers", "anndata", "mudata")
VARIABLES = ("CUDA_VISIBLE_DEVICES", "DS_ACCELERATOR", "HF_HUB_OFFLINE", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
OWN_VARIABLES = "SCFUSION_"


def describe_version() -> str:
    """Give the version of this package, of Python and of what matters most, in a line."""
    from scfusion_fm import __version__

    others = ", ".join(f"{name} {read_version(name) or 'missing'}" for name in MATTERING)
    return f"scfusion {__version__} (Python {platform.python_version()}, {others})"


def read_version(name: str) -> str | None:
    """Give the version of an installed package, without importing it; None where it is not there."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def describe_environment() -> dict[str, Any]:
    """Find versions of all that this package may need, the machine, its devices, and what is set in the environment."""
    from scfusion_fm import __version__

    needed, optional = _list_requirements()
    return {
        "scfusion_fm": __version__,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": _read_memory(),
        "devices": _describe_devices(),
        "models": _list_models(),
        "packages": {name: read_version(name) for name in needed},
        "optional": {name: version for name in optional if (version := read_version(name))},
        "variables": {name: os.environ[name] for name in sorted(os.environ) if _is_told(name)},
    }


def render_environment(found: dict[str, Any]) -> str:
    """Give lines for a report."""
    lines = [f"{name:<12}{found[name]}" for name in ("scfusion_fm", "python", "system", "cores")]
    lines.append(f"{'memory':<12}{found['memory_gib']} GiB")
    lines += [f"{'device':<12}{device}" for device in found["devices"]]
    lines.append(f"{'models':<12}{', '.join(found['models']) or 'none'}")
    lines += [f"{'set':<12}{name}={value}" for name, value in found["variables"].items()]
    lines.append("")
    lines += [f"{name:<20}{version or 'missing'}" for name, version in found["packages"].items()]
    lines += ["", "optional", *(f"{name:<20}{version}" for name, version in found["optional"].items())]
    return "\n".join(lines)


def _list_requirements() -> tuple[list[str], list[str]]:
    """Give the names of what this package needs, and of what its extras add."""
    needed: set[str] = set()
    optional: set[str] = set()
    for line in metadata.requires(PACKAGE) or ():
        name = re.split(r"[^\w.-]", line, maxsplit=1)[0].lower()
        (optional if "extra ==" in line else needed).add(name)
    return sorted(needed), sorted(optional - needed - {PACKAGE})


def _read_memory() -> float:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)


def _describe_devices() -> list[str]:
    """Say what torch can calculate on; an import that fails is what a report is for."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return [f"torch cannot be imported: {error}"]
    found = [f"CPU, {torch.get_num_threads()} threads of torch, {torch.backends.cpu.get_cpu_capability()}"]
    for number in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(number)
        size = device.total_memory / 2**30
        found.append(f"cuda:{number} {device.name}, {size:.0f} GiB, CUDA {torch.version.cuda}")
    return found


def _list_models() -> list[str]:
    from scfusion_fm.inference.model_files import list_shipped

    return sorted(list_shipped())


def _is_told(name: str) -> bool:
    return name in VARIABLES or (name.startswith(OWN_VARIABLES) and "/" not in os.environ[name])
