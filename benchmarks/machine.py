"""Which machine, which versions: the stamp on every row and the name of the results folder."""

import os
import re
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import torch

import tilewright

# Where the model string names no generation (cloud machines say "AMD EPYC"), the family and model numbers do.
_AMD_ZEN = {(23, 0x00): "zen", (23, 0x30): "zen2", (25, 0x00): "zen3", (25, 0x10): "zen4", (25, 0x60): "zen4"}
_AMD_ZEN |= {(25, 0x20): "zen3", (25, 0x50): "zen3", (25, 0xA0): "zen4", (26, 0x00): "zen5", (26, 0x10): "zen5"}
_INTEL = {0x55: "skylake", 0x6A: "icelake", 0x6C: "icelake", 0x8F: "sapphirerapids", 0xCF: "emeraldrapids"}
_INTEL |= {0xAD: "graniterapids", 0xAE: "graniterapids"}


@dataclass(frozen=True)
class Machine:
    """What a result depends on beside the code."""

    slug: str
    cpu: str
    cores: int
    isa: str
    threads: int
    torch: str
    tilewright: str
    date: str


def _cpuinfo() -> dict[str, str]:
    try:
        text = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in text.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _generation(info: dict[str, str]) -> str:
    family, model = int(info.get("cpu family", "0")), int(info.get("model", "0"))
    if info.get("vendor_id") == "AuthenticAMD":
        return _AMD_ZEN.get((family, model & 0xF0)) or _AMD_ZEN.get((family, 0x00), "")
    if family != 6:
        return ""
    # Cloud machines may hide the model number; a tile unit came with Sapphire Rapids.
    return _INTEL.get(model) or ("amx" if "amx_bf16" in info.get("flags", "").split() else "")


def cpu_name() -> str:
    """The model string without marketing, with the generation where it is known: 'AMD EPYC zen4'."""
    info = _cpuinfo()
    name = re.sub(r"\((R|TM)\)|\bCPU\b|@.*|\b\d+-Core\b|\bProcessor\b", "", info.get("model name", "unknown CPU"))
    return " ".join(f"{name} {_generation(info)}".split())


def cores() -> int:
    """The CPUs this process may use."""
    return len(os.sched_getaffinity(0))


def describe() -> Machine:
    """The machine as this run uses it; fewer threads or a lower ISA than it has get a folder of their own."""
    isa, threads = tilewright._C.active_isa(), torch.get_num_threads()
    words = [*re.findall(r"[a-z0-9]+", cpu_name().lower()), f"{cores()}c"]
    if threads != cores():
        words.append(f"{threads}t")
    if isa != tilewright._C.available_isas()[-1]:
        words.append(isa)
    return Machine(
        slug="-".join(words),
        cpu=cpu_name(),
        cores=cores(),
        isa=isa,
        threads=threads,
        torch=torch.__version__,
        tilewright=tilewright.__version__,
        date=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M"),
    )
