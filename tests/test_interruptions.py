"""A run that is killed at any moment loses nothing: `pytest -m long tests/test_interruptions.py`.

A hundred times, SIGTERM and kill -9 in turn strike a training process at a random moment; with a checkpoint
a step, many strike while one is written. What comes out in the end must be, bit for bit, what an undisturbed
run leaves. The result goes to `dyndiff/results/interruptions.json`.
"""

import contextlib
import multiprocessing
import os
import random
import signal
import subprocess
import time
from collections import Counter

import pytest

from dyndiff.files import newest_checkpoint
from dyndiff.records import RESULTS, write_record

STEPS, MOMENTS = 60, 100
COMMAND = ["train", "cunet-digits", "--steps", str(STEPS), "--batch-size", "2", "--checkpoint-every", "1"]

PROCESSES = multiprocessing.get_context("forkserver")  # torch is imported once, and not by the process that is killed
PROCESSES.set_forkserver_preload(["dyndiff.cli", "dyndiff.experiments.training", "accelerate", "sklearn.datasets"])


def command(out):
    """What a process runs, silently."""
    import torch

    from dyndiff.cli import main

    torch.set_num_threads(1)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        main([*COMMAND, "--out", str(out)])


def start(out):
    process = PROCESSES.Process(target=command, args=(out,))
    process.start()
    return process


def files(folder):
    """Every file, by name and content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def strike(out, signum, dice):
    """Start the run, or let it go on, and stop it: how it ended, and whether a checkpoint was being written."""
    before, process = set(os.listdir(out)) if out.exists() else set(), start(out)
    if dice.random() < 0.15:  # perhaps before it has found its place
        time.sleep(dice.uniform(0, 1))
    else:
        while process.is_alive() and not (out.exists() and set(os.listdir(out)) - before - {"run.json"}):
            time.sleep(0.001)
        time.sleep(dice.uniform(0, 0.2))
    os.kill(process.pid, signum)
    process.join()
    return process.exitcode, any("unfinished" in name for name in os.listdir(out)) if out.exists() else False


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_hundred_interruptions_change_no_bit(tmp_path):
    dice, counts, writing, runs = random.Random(0), Counter(), 0, []
    whole = tmp_path / "whole"
    (process := start(whole)).join()
    assert process.exitcode == 0
    while sum(counts.values()) < MOMENTS or runs[-1] != "finished":
        out = tmp_path / f"run-{sum(run == 'finished' for run in runs)}"
        signum = (signal.SIGTERM, signal.SIGKILL)[sum(counts.values()) % 2]
        if sum(counts.values()) < MOMENTS:
            code, unfinished = strike(out, signum, dice)
        else:
            (process := start(out)).join()
            code, unfinished = process.exitcode, False
        assert code in (0, 143, -signal.SIGTERM, -signal.SIGKILL)
        if code:
            kind = {143: "SIGTERM, saved", -signal.SIGTERM: "SIGTERM, before training"}.get(code, "SIGKILL")
            counts[kind] += 1
            writing += unfinished
            runs.append("struck")
        else:
            assert files(out) == files(whole)
            runs.append("finished")
    finished = runs.count("finished")
    result = {"interruptions": sum(counts.values()), "by_kind": dict(counts), "while_writing": writing,
              "steps_a_run": STEPS, "runs": finished, "runs_equal_to_the_undisturbed_one": finished}  # fmt: skip
    assert counts["SIGKILL"] >= 45
    assert writing >= 10
    write_record(RESULTS / "interruptions.json", result)


@pytest.fixture
def small_disk(tmp_path):
    """A disk that holds two checkpoints and little more, where one may be mounted."""
    (disk := tmp_path / "disk").mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("only root mounts a disk")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.long
def test_a_disk_that_is_full_in_the_middle_of_a_run_leaves_the_last_checkpoint(small_disk, tmp_path):
    """What fills it grows until a checkpoint no longer fits."""
    (process := start(tmp_path / "whole")).join()
    out = small_disk / "run"
    process = start(out)
    with open(small_disk / "filler", "wb") as filler:
        while process.is_alive():
            if newest_checkpoint(out) is not None:
                with contextlib.suppress(OSError):
                    filler.write(bytes(50_000))
                    filler.flush()
            time.sleep(0.02)
    process.join()
    assert process.exitcode == 2
    assert newest_checkpoint(out) is not None
    assert not [name for name in os.listdir(out) if "unfinished" in name]
    (small_disk / "filler").unlink()
    (process := start(out)).join()
    assert process.exitcode == 0
    assert files(out) == files(tmp_path / "whole")
