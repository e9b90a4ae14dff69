"""`dyndiff train`: whose folder it is, what it leaves there, how it is stopped, what a broken disk does to it."""

import errno
import json
import os
import re
import signal
import time
from pathlib import Path

import pytest
import torch

from dyndiff import Denoiser
from dyndiff.cli import main
from dyndiff.files import newest_checkpoint, read_json, write_json
from dyndiff.progress import stop_signals

COMMAND = ["train", "cunet-digits", "--steps", "4", "--batch-size", "2"]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def refused(capsys, *more):
    """The one line that a command ends with."""
    with pytest.raises(SystemExit) as stopped:
        main([*COMMAND, "--out", "run", *more])
    err = capsys.readouterr().err
    assert stopped.value.code == 2
    assert re.fullmatch(r"dyndiff: [^\n]+\n", err)
    return err


def contents(folder="run"):
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*"))


def test_pictures_and_curves_on_the_way(capsys):
    pytest.importorskip("tensorboard")
    main([*COMMAND, "--steps", "12", "--out", "run", "--sample-every", "7", "--tracker", "tensorboard", "--keep", "2",
          "--checkpoint-every", "4"])  # fmt: skip
    found = contents()
    assert [name for name in found if name.endswith(".png")] == [f"samples/step-0000{n}.png" for n in ("07", "12")]
    assert [name for name in found if re.fullmatch(r"step-\d+", name)] == ["step-000008", "step-000012"]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(next(Path("run").rglob("events.*"))))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"loss", "learning_rate", "images_per_second"}
    assert [event.step for event in events.Scalars("loss")] == [10]


def test_pictures_change_nothing_of_the_run():
    for out, every in (("run", "3"), ("plain", "0")):
        main([*COMMAND, "--out", out, "--sample-every", every])
    drawn, plain = (Denoiser.load(out).net.state_dict() for out in ("run", "plain"))
    assert all(torch.equal(value, plain[name]) for name, value in drawn.items())


@pytest.mark.parametrize(("setting", "message"), [
    ("--tracker nosuch", "unknown tracker 'nosuch'; choose from"),
    ("--tracker all", "unknown tracker 'all'"),
    ("--keep 0", "keep must be at least 1, got 0"),
    ("--sample-every -1", "sample_every must be at least 0, got -1"),
    ("--accumulate 3", "batch_size must divide by processes x accumulate: got 2 images for 1 x 3"),
    ("--precision fp8", "unknown precision 'fp8'; choose from no, fp16, bf16"),
])  # fmt: skip
def test_a_mistake_is_one_line_and_writes_nothing(setting, message, capsys):
    assert message in refused(capsys, *setting.split())
    assert not Path("run").exists()


def test_a_tracker_that_is_not_installed_is_named(capsys, monkeypatch):
    from accelerate import tracking

    monkeypatch.setattr(tracking, "get_available_trackers", lambda: [])
    assert "'tensorboard' is not installed: pip install tensorboard" in refused(capsys, "--tracker", "tensorboard")


def test_a_launchers_precision_is_not_passed_over(capsys, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert "--precision bf16" in refused(capsys)


def test_a_launcher_that_starts_one_process_of_several_is_told_of(capsys, monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    main([*COMMAND, "--steps", "1", "--out", "run"])
    assert "one process" in capsys.readouterr().err


def test_no_resume_leaves_a_run_alone(capsys):
    main([*COMMAND, "--out", "run", "--no-resume"])
    before = contents()
    assert "'run' holds a run" in refused(capsys, "--no-resume")
    assert contents() == before


def edit(path, **changes):
    write_json(path, {**read_json(path), **changes})


@pytest.mark.parametrize(("name", "damage"), [
    ("target", lambda step: edit(step / "config.json", target="eps")),
    ("schedule", lambda step: edit(step / "config.json", schedule={"name": "sigmoid", "steps": 1000})),
    ("network", lambda step: edit(step / "config.json", net={**read_json(step / "config.json")["net"], "size": 8})),
    ("seed = 5", lambda step: edit(step / "training.json",
                                   config={**read_json(step / "training.json")["config"], "seed": 5})),
])  # fmt: skip
def test_a_checkpoint_that_is_not_the_runs_is_refused(name, damage, capsys):
    main([*COMMAND, "--out", "run"])
    damage(newest_checkpoint("run"))
    (newest_checkpoint("run") / "manifest.json").unlink()
    assert name in refused(capsys)


def test_a_setting_that_is_newer_than_the_run_had_its_default(capsys):
    main([*COMMAND, "--out", "run"])
    settings = read_json(Path("run/run.json"))
    del settings["precision"]
    write_json(Path("run/run.json"), settings)
    main([*COMMAND, "--out", "run"])
    assert "all 4 steps are done already" in capsys.readouterr().out
    assert "precision = no (asked for: bf16)" in refused(capsys, "--precision", "bf16")


def test_what_a_killed_process_left_is_cleared_at_the_next_start():
    for left in ("run/.step-000001.unfinished-abc", "run/samples/.step-000001.png.unfinished-abc"):
        Path(left).mkdir(parents=True)
        (Path(left) / "half").touch()
    main([*COMMAND, "--out", "run"])
    assert not [name for name in contents() if "unfinished" in name]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_disk_that_takes_no_more_is_one_line_and_leaves_the_last_checkpoint(number, capsys, monkeypatch):
    """From the second checkpoint on, nothing can be written."""
    from dyndiff import files

    save_file = files.save_file

    def save(tensors, path):
        if "step-000002" in str(path):
            raise OSError(number, os.strerror(number), str(path))
        save_file(tensors, path)

    monkeypatch.setattr(files, "save_file", save)
    assert os.strerror(number) in refused(capsys, "--checkpoint-every", "1")
    assert [name for name in os.listdir("run") if "step" in name] == ["step-000001"]
    monkeypatch.undo()
    main([*COMMAND, "--out", "run"])
    main([*COMMAND, "--out", "whole"])
    one, other = (Denoiser.load(out).net.state_dict() for out in ("run", "whole"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.fixture
def read_only():
    """A folder of a finished run that this process may not write to; root steps down to do without."""
    main([*COMMAND, "--out", "run"])
    user = os.geteuid()
    os.chmod(".", 0o755)
    os.chmod("run", 0o555)
    if user == 0:
        os.seteuid(65534)
    yield
    os.seteuid(user)
    os.chmod("run", 0o755)


def test_a_read_only_folder_is_one_line(read_only, capsys):
    before = contents()
    assert "cannot write to the folder 'run': Permission denied" in refused(capsys)
    assert contents() == before


def test_a_loss_that_is_no_number_keeps_the_last_checkpoint(capsys):
    line = refused(capsys, "--learning-rate", "1e30", "--steps", "9", "--checkpoint-every", "1")
    step = int(re.search(r"in step (\d)", line)[1])
    assert newest_checkpoint("run").name == f"step-{step - 1:06d}"
    assert len(json.loads((newest_checkpoint("run") / "training.json").read_text())["losses"]) == step - 1


def test_a_signal_that_comes_twice_at_once_is_one_and_a_later_one_ends(monkeypatch):
    with stop_signals() as received:
        assert received() == 0
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert received() == signal.SIGINT
        later = time.monotonic() + 2
        monkeypatch.setattr(time, "monotonic", lambda: later)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
