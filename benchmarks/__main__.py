"""Run every benchmark, print tables, and write JSON with the machine and the versions.

make bench
python -m benchmarks reading --out bench.json
"""

import argparse
import json
import os
import platform
from importlib import import_module, metadata
from pathlib import Path

from pipelines.show import table

NAMES = ("reading", "extraction", "alignment", "wrong_texts", "training")
PACKAGES = ("featcache", "torch", "transformers", "zarr", "h5py", "numpy", "pocketsphinx")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"benchmarks to run; all of {', '.join(NAMES)} by default")
    parser.add_argument("--out", type=Path, default=Path("runs/bench.json"), help="JSON file to write")
    arguments = parser.parse_args()
    results = {name: import_module(f"benchmarks.{name}").run() for name in arguments.names or NAMES}
    machine = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "versions": {name: metadata.version(name) for name in PACKAGES},
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({"machine": machine, "results": results}, indent=1) + "\n")
    for name, rows in results.items():
        print(f"\n{name}: {import_module(f'benchmarks.{name}').__doc__.splitlines()[0]}")
        print(table([list(rows[0]), *([str(value) for value in row.values()] for row in rows)]))
    print(f"\nWrote {arguments.out}.")


if __name__ == "__main__":
    main()
