"""Bring a finished demo into the repository: `python -m dyndiff.experiments.publish_demo demo`.

Its pictures and numbers go to `book/results/demo`, its two models become the bundled ones, and the
README's table is written from the numbers.
"""

from __future__ import annotations

import argparse
import re
import shutil
from pathlib import Path
from typing import Any

from ..denoiser import BUNDLED, Denoiser
from ..files import output_folder, read_json
from .demo import MODELS, comparison_table

ROOT = BUNDLED.parent.parent
RESULTS = ROOT / "book" / "results" / "demo"
BLOCK = re.compile(r"(<!-- demo: .*? -->\n).*?(<!-- /demo -->)", re.DOTALL)


def readme_block(comparison: dict[str, Any]) -> str:
    """The README's table and the sentence under it, from a demo's `comparison.json`."""
    measured, config = comparison["measured"], comparison["config"]
    return (
        f"{comparison_table(comparison)}\n\n"
        f"Both learned {comparison['data'].split(':')[0]}, {config['steps']:,} steps of batch {config['batch_size']}, "
        f"seed {config['seed']}; {comparison['samples']} samples of {comparison['sampling_steps']} ancestral steps. "
        f"One seed: a first look, not an experiment. Fréchet distances are to the 500 test digits in the features "
        f"of a small bundled classifier; under “real digits” stands that of as many training digits. "
        f"Made by `{measured['command']}` in {comparison['seconds']:.0f} s "
        f"({measured['device']}, torch {measured['versions']['torch']}).\n"
    )


def main() -> None:
    """Copy, bundle, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("demo", type=Path, help="the demo's output folder")
    folder = parser.parse_args().demo
    if read_json(folder / "comparison.json")["resumed"]:
        raise SystemExit("the demo went on from an earlier one, so its seconds are not the whole: run it anew")
    for file in ("samples.png", "training.png", "comparison.json"):
        shutil.copy(folder / file, output_folder(RESULTS) / file)
    for name in MODELS:
        Denoiser.load(folder / "runs" / name).save(BUNDLED / name)
    readme, block = ROOT / "README.md", readme_block(read_json(RESULTS / "comparison.json"))
    readme.write_text(BLOCK.sub(lambda match: match[1] + block + match[2], readme.read_text()))


if __name__ == "__main__":
    main()
