"""Run chapters as a reader would and measure what they take: `python -m dyndiff.experiments.budget notebooks/*.ipynb`.

Each notebook is executed in a process of its own, one at a time. Its outputs are stored in it, progress
bars aside; its seconds and its kernel's most memory go into `dyndiff/budgets.json`, where the chapter
itself finds them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ..files import read_json, write_json
from ..notebook import BUDGETS, MODES, mode
from ..records import provenance

RUN = """
import resource, sys
import nbformat
from nbclient import NotebookClient
path, folder = sys.argv[1:]
notebook = nbformat.read(path, 4)
NotebookClient(notebook, timeout=7200, record_timing=False, resources={"metadata": {"path": folder}}).execute()
for cell in notebook.cells:
    if cell.cell_type == "code":
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
nbformat.write(notebook, path)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def run_notebook(notebook: Path, mode: str) -> dict[str, Any]:
    """Execute a notebook in place: its wall-clock seconds and its kernel's peak memory in MB."""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(notebook), str(notebook.parent)],
        env={**os.environ, "DYNDIFF_MODE": mode, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    kilobytes = int(done.stdout.split()[-1])
    return {"seconds": round(time.perf_counter() - started, 1), "peak_mb": round(kilobytes / 1024)}


def main() -> None:
    """Run and measure; what was measured before of other notebooks and modes stays."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("notebooks", type=Path, nargs="+")
    parser.add_argument("--mode", choices=MODES, default=mode())
    args = parser.parse_args()
    for notebook in args.notebooks:
        cost = run_notebook(notebook, args.mode)
        budgets = read_json(BUDGETS) if BUDGETS.exists() else {}  # read late: another run may have written
        budgets.setdefault(notebook.stem, {})[args.mode] = cost
        budgets |= {"device": provenance()["device"], "measured": provenance()}
        write_json(BUDGETS, budgets)
        print(f"{notebook.stem}: {cost['seconds']:.0f} s, {cost['peak_mb']:,} MB")


if __name__ == "__main__":
    main()
