"""Measure what each chapter takes: `python -m dyndiff.experiments.budget notebooks/*.ipynb`.

Every notebook is executed as a reader would, one at a time; its seconds and its kernel's most memory go
into `dyndiff/budgets.json`, where the chapter itself and the book's budget table find them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ..files import write_json
from ..notebook import BUDGETS, MODES
from ..records import provenance

RUN = """
import nbformat, resource, sys
from nbclient import NotebookClient
path = sys.argv[1]
NotebookClient(nbformat.read(path, 4), timeout=7200, resources={"metadata": {"path": sys.argv[2]}}).execute()
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def measure(notebook: Path, mode: str) -> dict[str, Any]:
    """Run a notebook in a fresh process: its wall-clock seconds and its kernel's peak memory in MB."""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(notebook), str(notebook.parent)],
        env={**os.environ, "DYNDIFF_MODE": mode},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    kilobytes = int(done.stdout.split()[-1])
    return {"seconds": time.perf_counter() - started, "peak_mb": kilobytes / 1024}


def main() -> None:
    """Measure, and keep what was measured before of other notebooks and modes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("notebooks", type=Path, nargs="+")
    parser.add_argument("--mode", choices=MODES, default="cpu")
    args = parser.parse_args()
    budgets = json.loads(BUDGETS.read_text()) if BUDGETS.exists() else {}
    measured = provenance()
    budgets |= {"device": measured["device"], "measured": {**measured, "command": "dyndiff.experiments.budget"}}
    for notebook in args.notebooks:
        cost = measure(notebook, args.mode)
        budgets.setdefault(notebook.stem, {})[args.mode] = cost
        print(f"{notebook.stem}: {cost['seconds']:.0f} s, {cost['peak_mb']:.0f} MB")
    write_json(BUDGETS, budgets)


if __name__ == "__main__":
    main()
