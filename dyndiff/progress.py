"""Long work on a terminal: a bar with the time left, checkpoints on the way, an orderly stop."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch
from tqdm import tqdm

from .data import Images
from .run import Run
from .train import TrainStep, train


class Interrupted(Exception):
    """The user stopped a run; it is saved, and the message says where."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signum = signum


def train_with_progress(
    run: Run,
    images: Images,
    folder: Path,
    name: str,
    checkpoint_every: int = 500,
    keep: int = 1,
    along: Callable[[TrainStep], object] = lambda step: None,
) -> None:
    """Train a run to its end in front of the user, with checkpoints in `folder`.

    Args:
        run: what to train; of several processes, the main one shows the bar and writes.
        images: what to learn.
        folder: for the checkpoints.
        name: shown beside the bar.
        checkpoint_every: steps between checkpoints.
        keep: how many of them stay.
        along: called after each step of the main process, once it is saved where it was to be.

    Raises:
        Interrupted: after Ctrl-C or SIGTERM, once the step is finished and saved.
    """
    total, main = run.config.steps, run.accelerator.is_main_process
    if run.step >= total:
        run.accelerator.print(f"{name}: all {total} steps are done already ({folder})")
        return
    bar = progress_bar(name, total, unit="step", initial=run.step, hidden=not main)
    with bar, stop_signals() as received:
        for step in train(run, images):
            bar.update()
            if step.step % 10 == 0:
                mean = sum(run.losses[-25:]) / len(run.losses[-25:])
                speed = f"{run.config.batch_size * (bar.format_dict['rate'] or 0):.0f} images/s"
                bar.set_postfix_str(f"loss {mean:.4f}, {speed}", refresh=False)
            stop = _agreed(run, received())
            if stop or step.step % checkpoint_every == 0 or step.step == total:
                run.save(folder, keep)
            if main:
                along(step)
            if stop and step.step < total:
                raise Interrupted(f"stopped after step {step.step} of {total}; all of it is saved in {folder}", stop)


def _agreed(run: Run, signum: int) -> int:
    """The signal that this process or another has received: all stop after the same step.

    To ask takes a round among the processes, so they do it at every tenth step.
    """
    if run.accelerator.num_processes == 1 or run.step % 10:
        return signum if run.accelerator.num_processes == 1 else 0
    return int(run.accelerator.gather(torch.tensor([signum], device=run.accelerator.device)).max())


def progress_bar(name: str, total: int, *, unit: str, initial: int = 0, hidden: bool = False) -> tqdm:
    """A bar with the time left; silent where the output is not a terminal, or if hidden."""
    layout = "{desc:13}{percentage:4.0f}% |{bar:24}| {n_fmt}/{total_fmt} {unit}s, {remaining} left{postfix}"
    return tqdm(total=total, initial=initial, desc=name, unit=unit, bar_format=layout, disable=hidden or None)


@contextmanager
def stop_signals() -> Iterator[Callable[[], int]]:
    """Turn Ctrl-C or SIGTERM into a question that a loop can ask: which was received? 0 is none.

    Another one ends at once, unless it comes within a second: terminals and launchers both pass one on.
    """
    received: list[tuple[int, float]] = []  # and when

    def note(signum: int, frame: FrameType | None) -> None:
        if received and time.monotonic() > received[0][1] + 1:
            raise KeyboardInterrupt
        received.append((signum, time.monotonic()))

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: received[0][0] if received else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
