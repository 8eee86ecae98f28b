"""What this process may use of the machine: cores, memory, GPUs, a cache folder; and which packages are installed."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory(system: str = "/proc/meminfo", group: str = "/sys/fs/cgroup") -> int | None:
    """Return how many bytes this process may still use, a container's limit included; None where nobody tells.

    Args:
        system: Linux's account of the memory.
        group: the folder of this process's control group.
    """
    limits: list[int] = []
    try:
        match = re.search(r"^MemAvailable:\s*(\d+) kB", Path(system).read_text(), re.M)
        limits += [int(match[1]) * 1024] if match else []
    except OSError:
        pass
    try:
        most, used = (Path(group, name).read_text().strip() for name in ("memory.max", "memory.current"))
        # What is cached counts as used there, but makes room when it is needed.
        cached = re.search(r"^inactive_file (\d+)", Path(group, "memory.stat").read_text(), re.M)
        if most != "max":
            limits.append(max(int(most) - int(used) + (int(cached[1]) if cached else 0), 0))
    except (OSError, ValueError):
        pass
    return min(limits, default=None)


def gpu_ids(environment: Mapping[str, str] | None = None, driver: str = "/proc/driver/nvidia/gpus") -> list[str]:
    """Return how `CUDA_VISIBLE_DEVICES` names each NVIDIA GPU that JAX may use in this process, without starting CUDA.

    What a container or SLURM leave of the machine is what `nvidia-smi` lists; where it is missing, their variables
    count. A GPU that is cut in slices (MIG) is used by slice.

    Args:
        environment: variables; default those of this process.
        driver: the folder in which the driver has a folder for each GPU.
    """
    variables = os.environ if environment is None else environment
    platforms = variables.get("JAX_PLATFORMS") or variables.get("JAX_PLATFORM_NAME") or "cuda"
    if not {"cuda", "gpu"} & set(platforms.lower().split(",")):
        return []
    if "CUDA_VISIBLE_DEVICES" in variables:
        return _valid(variables["CUDA_VISIBLE_DEVICES"])
    container = variables.get("NVIDIA_VISIBLE_DEVICES", "all")
    if container in ("", "none", "void"):
        return []
    listed = nvidia_smi()
    if listed:
        # Slices follow their GPU, which then is not used whole.
        found = re.findall(r"^(GPU|\s+MIG) .*\(UUID: ([\w/-]+)\)\s*$", listed, re.M)
        following = [kind for kind, _ in found[1:]] + ["GPU"]
        return [uuid for (kind, uuid), after in zip(found, following, strict=True) if kind != "GPU" or after == "GPU"]
    if slurm := variables.get("SLURM_STEP_GPUS") or variables.get("SLURM_JOB_GPUS"):
        return _valid(slurm)
    there = len(list(Path(driver).glob("*/information")))
    # Inside of a container CUDA counts from 0, whatever the GPUs' numbers are outside.
    return [str(number) for number in range(there if container == "all" else len(container.split(",")))]


def _valid(listed: str) -> list[str]:
    """Devices of a list; as CUDA reads it, whatever follows a wrong one is hidden."""
    found: list[str] = []
    for name in listed.split(","):
        span = re.fullmatch(r"(\d+)-(\d+)", name.strip())  # SLURM's
        if span:
            found += map(str, range(int(span[1]), int(span[2]) + 1))
        elif re.fullmatch(r"\d+|(GPU|MIG)-[\w/-]+", name.strip()):
            found.append(name.strip())
        else:
            break
    return found


def nvidia_smi() -> str:
    """Return what `nvidia-smi -L` lists; nothing where there is no such program, or no GPU."""
    import shutil
    import subprocess

    if not shutil.which("nvidia-smi"):
        return ""
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def processor_name(cpuinfo: str = "/proc/cpuinfo") -> str:
    """Return which processor this machine has, such as "AMD EPYC 7B13"; its architecture where nobody tells.

    Args:
        cpuinfo: Linux's account of it.
    """
    import platform

    try:
        match = re.search(r"^model name\s*:\s*(\S.*)$", Path(cpuinfo).read_text(errors="replace"), re.M)
    except OSError:
        match = None
    return " ".join(match[1].split()) if match else platform.processor() or platform.machine() or "cpu"


def cache_folder() -> Path:
    """Return the user's cache folder: $AQX_CACHE, or aqx in $XDG_CACHE_HOME, or ~/.cache/aqx."""
    if "AQX_CACHE" in os.environ:
        return Path(os.environ["AQX_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "aqx"


def version_of(package: str) -> str | None:
    """Return the version of an installed package; None for one that is not, as aqx run from a checkout."""
    from importlib import metadata  # takes a twentieth of a second

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def install_command(extra: str) -> str:
    """Return what installs an extra of aqx: by its name, and from the checkout where aqx runs from one.

    Example:
        >>> from aqx.machine import install_command
        >>> install_command("report").startswith("pip install ")
        True
    """
    import shlex  # nobody else needs it

    checkout, by_name = Path(__file__).resolve().parent.parent, f"pip install 'aqx[{extra}]'"
    if (checkout / "pyproject.toml").is_file():
        return f"{by_name}, from this checkout pip install -e {shlex.quote(f'{checkout}[{extra}]')}"
    return by_name
