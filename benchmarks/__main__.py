"""Run every benchmark, print tables, and write JSON with the machine and the versions.

make bench
python -m benchmarks reading --out bench.json
python -m benchmarks --quick
"""

import argparse
import json
import os
import platform
import sys
import time
from importlib import import_module, metadata
from pathlib import Path

import torch

from pipelines.show import table

NAMES = (
    "reading",
    "extraction",
    "sweeps",
    "training",
    "boundary",
    "startup",
    "size",
    "scaling",
    "alignment",
    "wrong_texts",
)
PACKAGES = ("featcache", "torch", "transformers", "zarr", "zarrs", "h5py", "numpy", "pocketsphinx")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"benchmarks to run; all of {', '.join(NAMES)} by default")
    parser.add_argument("--out", type=Path, default=Path("runs/bench.json"), help="JSON file to write")
    parser.add_argument(
        "--quick", action="store_true", help="smallest sizes, to see that all runs; no figures to quote"
    )
    arguments = parser.parse_args()
    results: dict[str, object] = {}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    for name in arguments.names or NAMES:
        print(f"{name} ...", file=sys.stderr)
        module = import_module(f"benchmarks.{name}")
        start = time.perf_counter()
        rows = module.run(arguments.quick)
        results[name] = rows
        # After each: an hour of measurements is not lost with the last of them.
        arguments.out.write_text(
            json.dumps({"machine": _machine(arguments.quick), "results": results}, indent=1) + "\n"
        )
        print(f"\n{name}: {module.__doc__.splitlines()[0]} ({time.perf_counter() - start:.0f} s)")
        if rows:
            print(table([list(rows[0]), *([str(value) for value in row.values()] for row in rows)]), flush=True)
    print(f"\nWrote {arguments.out}.")


def _machine(quick: bool) -> dict[str, object]:
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "system": platform.system(),
        "quick": quick,
        "versions": {name: metadata.version(name) for name in PACKAGES if _installed(name)},
    }


def _processor() -> str:
    """Return the processor's name where the system tells it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    main()
