"""Long work on a terminal: a bar with the time left, checkpoints on the way, an orderly stop."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from tqdm import tqdm

from .data import Images
from .train import Run, train


class Interrupted(Exception):
    """The user stopped a run; it is saved, and the message says where."""


def train_with_progress(run: Run, images: Images, folder: Path, name: str, checkpoint_every: int = 500) -> None:
    """Train a run to its end in front of the user, with checkpoints in `folder`.

    Raises:
        Interrupted: after Ctrl-C or SIGTERM, once the step is finished and saved.
    """
    total = run.config.steps
    if run.step >= total:
        print(f"{name}: all {total} steps are done already ({folder})")
        return
    bar = progress_bar(name, total, unit="step", initial=run.step)
    with bar, stop_signals() as stopped:
        for step in train(run, images):
            bar.update()
            if step.step % 10 == 0:
                mean = sum(run.losses[-25:]) / len(run.losses[-25:])
                speed = f"{run.config.batch_size * (bar.format_dict['rate'] or 0):.0f} images/s"
                bar.set_postfix_str(f"loss {mean:.4f}, {speed}", refresh=False)
            if stopped() or step.step % checkpoint_every == 0 or step.step == total:
                run.save(folder)
            if stopped() and step.step < total:
                raise Interrupted(f"stopped after step {step.step} of {total}; all of it is saved in {folder}")


def progress_bar(name: str, total: int, *, unit: str, initial: int = 0) -> tqdm:
    """A bar with the time left; silent where the output is not a terminal."""
    layout = "{desc:13}{percentage:4.0f}% |{bar:24}| {n_fmt}/{total_fmt} {unit}s, {remaining} left{postfix}"
    return tqdm(total=total, initial=initial, desc=name, unit=unit, bar_format=layout, disable=None)


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C or SIGTERM into a question that a loop can ask; the second one ends at once."""
    received: list[int] = []

    def note(signum: int, frame: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(signum)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
