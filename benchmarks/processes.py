"""How much faster are two processes than one, a core each? `python benchmarks/processes.py`.

`accelerate launch` starts one process, then two, on the CPU, with one thread each, in turn; they train the same
network at the same global batch. Images a second go to `dyndiff/results/processes.json`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import torch

from dyndiff import Denoiser, Run, TrainConfig, cosine, create_model, load_images, train
from dyndiff.records import RESULTS, write_record

PRESET, BATCH, STEPS = "unet-mnist", 64, 10


def work() -> None:
    """In each process: two steps to warm up, then `STEPS` timed ones; the main process prints the speed."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = create_model(PRESET)
    run = Run(Denoiser(net, cosine(), "v"), TrainConfig(steps=2 + STEPS, batch_size=BATCH))
    for step in train(run, load_images("shapes", size=net.config.size)):
        if step.step == 2:
            started = time.perf_counter()
    run.accelerator.print(BATCH * STEPS / (time.perf_counter() - started))


def speed(processes: int) -> float:
    """Images a second of so many processes."""
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), __file__, "--worker"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return float(result.stdout.split()[-1])


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS / "processes.json")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return work()
    torch.set_num_threads(1)  # for the record, as in the processes
    speeds: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(args.rounds):
        for processes, values in speeds.items():
            values.append(speed(processes))
    ratios = [two / one for one, two in zip(speeds[1], speeds[2], strict=True)]
    write_record(args.out, {
        "network": PRESET, "batch": BATCH, "steps": STEPS, "threads_a_process": 1,
        "images_per_second": {str(processes): values for processes, values in speeds.items()},
        "speedup": median(ratios), "speedups": ratios,
    })  # fmt: skip
    print(f"two processes make {median(ratios):.2f} times the images of one ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
