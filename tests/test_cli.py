"""The command line: a mistake is one line and changes nothing; what is stopped goes on."""

import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from dyndiff import Denoiser, bundled
from dyndiff.cli import COMMANDS, main
from dyndiff.files import newest_checkpoint

TINY = ["--steps", "2", "--batch-size", "2"]
PACKAGE = Path(__file__).parents[1]


def start(*args, cwd):
    """`python -m dyndiff ...` in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE)}
    return subprocess.Popen(
        [sys.executable, "-m", "dyndiff", *args],
        cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def files(folder):
    """Everything under a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def weights(folder):
    return Denoiser.load(folder).net.state_dict()


def equal_weights(one, other):
    return all(torch.equal(value, weights(other)[name]) for name, value in weights(one).items())


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def refused(capsys, tmp_path):
    """`refused(*args)` runs a command that must fail in one line and write nothing; it returns the line."""

    def run(*args):
        before = files(tmp_path)
        with pytest.raises(SystemExit) as stopped:
            main(list(args))
        out, err = capsys.readouterr()
        assert stopped.value.code == 2
        assert out == ""
        assert re.fullmatch(r"dyndiff: [^\n]+\n", err)
        assert files(tmp_path) == before
        return err

    return run


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A digit model after two steps, made once: copy it to change it."""
    folder = tmp_path_factory.mktemp("runs") / "cunet"
    main(["train", "cunet-digits", "--out", str(folder), *TINY])
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the trained model's run, called `run` from where the commands are given."""
    shutil.copytree(trained, tmp_path / "run")
    return "run"


BAD = [
    ("train nosuch --out new", "unknown preset 'nosuch'; choose from unet-digits"),
    ("train cunet-digits --out new --data nosuch", "unknown data set 'nosuch'; choose from digits, shapes"),
    ("train cunet-digits --out new --schedule nosuch", "unknown schedule 'nosuch'; choose from linear"),
    ("train cunet-digits --out new --target nosuch", "unknown target 'nosuch'; choose from eps, x0, v"),
    ("train cunet-digits --out new --steps -1", "steps must be at least 1, got -1"),
    ("train cunet-digits --out new --batch-size -1", "batch_size must be at least 1, got -1"),
    ("train cunet-digits --out new --learning-rate 0", "learning_rate must be positive"),
    ("train cunet-digits --out new --checkpoint-every 0", "checkpoint_every must be at least 1, got 0"),
    ("train cunet-digits --out new --seed -1", "a seed must not be negative, got -1"),
    ("sample nosuch --out new", "no model 'nosuch'"),
    ("sample run --out new --sampler nosuch", "unknown sampler 'nosuch'; choose from ancestral, ddim"),
    ("sample run --out new --count 0", "count and batch_size must be at least 1, got 0"),
    ("sample run --out new --count -1", "count and batch_size must be at least 1, got -1"),
    ("sample run --out new --batch-size 0", "count and batch_size must be at least 1"),
    ("sample run --out new --steps 0", "at least 1 step, got 0"),
    ("sample run --out new --seed -1", "a seed must not be negative, got -1"),
    ("sample run --out new --size 18", "image sides must divide by 4 for 3 levels, got 18x18"),
    ("sample run --out new --size 0", "size"),
    ("sample run --out new --size -16", "size"),
    ("evaluate nosuch", "no model 'nosuch'"),
    ("evaluate run --out new/result.json --samples 1", "at least 2 samples, got 1"),
    ("evaluate run --out new/result.json --samples 2 --sampler nosuch", "unknown sampler 'nosuch'"),
    ("evaluate run --out new/result.json --samples 2 --steps 0", "at least 1 step, got 0"),
    ("evaluate run --out new/result.json --samples 2 --seed -1", "a seed must not be negative, got -1"),
    ("evaluate run --out run --samples 2 --steps 1", "run"),
    ("profile nosuch", "unknown preset 'nosuch'"),
    ("profile", "name at least one preset"),
    ("profile unet-digits --size 18", "image sides must divide by 4 for 3 levels, got 18x18"),
    ("profile unet-digits --size 0", "at least 1, got 1 and 0"),
    ("profile unet-digits --batch-size 0", "at least 1, got 0"),
    ("profile unet-digits --repeats 1", "at least 2 repeats, got 1"),
    ("demo --out new --steps 0", "steps must be at least 1, got 0"),
    ("demo --out new --batch-size -1", "batch_size must be at least 1, got -1"),
    ("demo --out new --steps 1 --batch-size 2 --seed -1", "a seed must not be negative, got -1"),
    ("demo --out new --steps 1 --batch-size 2 --samples 1", "at least 2"),
    ("demo --out new --steps 1 --batch-size 2 --samples 2 --sampling-steps 0", "at least 1 step, got 0"),
]


@pytest.mark.parametrize(("command", "message"), BAD, ids=[command for command, _ in BAD])
def test_a_mistake_is_one_line_and_writes_nothing(command, message, run, refused):
    assert message in refused(*command.split())


@pytest.mark.parametrize("command", [
    "train cunet-digits --out file", "sample run --out file", "demo --out file",
    "evaluate run --out file/result.json --samples 2", "train cunet-digits --out file/below",
])  # fmt: skip
def test_a_file_in_the_folders_place_is_left_alone(command, run, refused, tmp_path):
    (tmp_path / "file").write_text("mine")
    assert "cannot write to the folder 'file" in refused(*command.split(), *["--steps", "1"])
    assert (tmp_path / "file").read_text() == "mine"


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


DAMAGES = {
    "weights cut short": lambda step: truncate(step / "model.safetensors"),
    "weights of another kind": lambda step: torch.save({"a": torch.ones(1)}, step / "model.safetensors"),
    "another network's config": lambda step: (step / "config.json").write_text('{"net": {}}'),
    "config cut short": lambda step: truncate(step / "config.json"),
}


@pytest.mark.parametrize("command", ["sample run --out new", "evaluate run", "train cunet-digits --out run --steps 2"])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_one_line_that_names_it(damage, command, run, refused):
    damage(newest_checkpoint(run))
    more = ["--batch-size", "2"] if command.startswith("train") else []
    assert "run/step-000002" in refused(*command.split(), *more)


@pytest.mark.parametrize(("setting", "message"), [
    ("--seed 1", "seed = 0 (asked for: 1)"),
    ("--steps 3", "steps = 2 (asked for: 3)"),
    ("--target eps", "target = v (asked for: eps)"),
    ("--data shapes", "data = digits (asked for: shapes)"),
])  # fmt: skip
def test_a_folder_with_another_run_is_left_alone(setting, message, run, refused):
    options = dict(zip(TINY[::2], TINY[1::2], strict=True)) | dict([setting.split()])
    line = refused("train", "cunet-digits", "--out", run, *[word for pair in options.items() for word in pair])
    assert message in line
    assert "give another --out" in line


def test_a_folder_with_another_networks_run_is_left_alone(run, refused):
    assert "preset = cunet-digits (asked for: unet-digits)" in refused("train", "unet-digits", "--out", run, *TINY)


def test_the_demo_leaves_another_demos_runs_alone(run, refused, tmp_path):
    shutil.move(tmp_path / run, tmp_path / "demo" / "runs" / "unet-digits")
    assert "steps = 2 (asked for: 3)" in refused("demo", "--steps", "3", "--batch-size", "2")


def test_checkpoints_without_their_settings_are_left_alone(run, refused, tmp_path):
    (tmp_path / run / "run.json").unlink()
    assert "no run.json" in refused("train", "cunet-digits", "--out", run, *TINY)


def test_a_loss_that_is_no_number_is_one_line(tmp_path, capsys):
    """What was reached before is written, so `refused` would not do."""
    with pytest.raises(SystemExit) as stopped:
        main(["train", "cunet-digits", "--out", "new", "--learning-rate", "1e30", "--steps", "9", "--batch-size", "2"])
    assert stopped.value.code == 2
    assert re.fullmatch(r"dyndiff: the loss became (nan|inf) in step \d: [^\n]+\n", capsys.readouterr().err)


def test_a_full_disk_is_one_line(tmp_path, capsys):
    """A limit on the size of files stands for the disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(SystemExit) as stopped:
            main(["train", "cunet-digits", "--out", "new", *TINY])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert stopped.value.code == 2
    assert re.fullmatch(r"dyndiff: [^\n]+\n", capsys.readouterr().err)
    assert files(tmp_path / "new") == ["run.json"]


@pytest.mark.parametrize(
    "command", ["train cunet-digits --out new --steps many", "nosuch", "sample run", "demo --nosuch 1"]
)
def test_what_cannot_be_parsed_is_explained_and_writes_nothing(command, capsys, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        main(command.split())
    assert stopped.value.code == 2
    assert "Traceback" not in capsys.readouterr().err
    assert files(tmp_path) == []


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example_and_explains_every_option(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    text = capsys.readouterr().out
    assert stopped.value.code == 0
    assert f"dyndiff {command} " in text.split("usage:")[-1].split("\n", 1)[1]
    explained = COMMANDS[command].__doc__.partition("Args:")[2]
    for name in COMMANDS[command].__annotations__:
        if name != "return":
            assert f"\n        {name}: " in explained


def test_help_lists_the_commands(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    text = capsys.readouterr().out
    assert stopped.value.code == 0
    assert all(command in text for command in COMMANDS)


def test_train_twice_does_nothing_the_second_time(run, capsys, tmp_path):
    def stamps():
        return {path: path.stat().st_mtime_ns for path in newest_checkpoint(run).iterdir()}

    before = stamps()
    main(["train", "cunet-digits", "--out", run, *TINY])
    assert "all 2 steps are done already" in capsys.readouterr().out
    assert stamps() == before


def test_train_says_what_to_do_next_and_leaves_one_checkpoint(capsys, tmp_path):
    main(["train", "unet-digits", "--data", "shapes", "--schedule", "linear", "--target", "eps", "--out", "new", *TINY])
    assert "Next: dyndiff sample new --out pictures" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["run.json", "step-000002"]
    assert Denoiser.load("new").target == "eps"
    assert Denoiser.load("new").schedule.name == "linear"


def test_train_reads_a_folder_of_parquet(capsys, tmp_path):
    """A hundred random images in MNIST's layout."""
    parquet, pyarrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    images = pytest.importorskip("PIL.Image")
    rows = []
    for value in range(100):
        images.new("L", (28, 28), value).save(file := io.BytesIO(), "png")
        rows.append({"bytes": file.getvalue(), "path": None})
    (tmp_path / "sets" / "mnist").mkdir(parents=True)
    table = pyarrow.table({"image": rows, "label": [n % 10 for n in range(100)]})
    parquet.write_table(table, tmp_path / "sets" / "mnist" / "train.parquet")
    main(["train", "thin-mnist", "--data", "mnist", "--data-dir", "sets", "--out", "new", *TINY])
    assert Denoiser.load("new").net.config.size == 28


def test_an_interrupted_run_is_saved_and_goes_on_to_the_same_weights(tmp_path):
    """Ctrl-C in a process of its own, then the same command, against a run that nobody stopped."""
    command = ["train", "cunet-digits", "--steps", "60", "--batch-size", "2"]
    process = start(*command, "--out", "stopped", "--checkpoint-every", "1", cwd=tmp_path)
    deadline = time.monotonic() + 120
    while newest_checkpoint("stopped") is None and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)

    assert process.returncode == 130
    found = re.fullmatch(
        r"\s*dyndiff: stopped after step (\d+) of 60; all of it is saved in stopped\. "
        r"The same command goes on from there\.\n", err
    )  # fmt: skip
    assert found
    assert newest_checkpoint("stopped").name == f"step-{int(found[1]):06d}"

    main([*command, "--out", "stopped"])
    main([*command, "--out", "whole"])
    assert newest_checkpoint("stopped").name == "step-000060"
    assert equal_weights("stopped", "whole")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_either_signal_stops_a_run_in_order(number, monkeypatch, capsys, tmp_path):
    from dyndiff import progress

    train = progress.train

    def signalled(run, images):
        for step in train(run, images):
            if step.step == 2:
                os.kill(os.getpid(), number)
            yield step

    monkeypatch.setattr(progress, "train", signalled)
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as stopped:
        main(["train", "cunet-digits", "--out", "new", "--steps", "5", "--batch-size", "2"])
    assert stopped.value.code == 128 + number
    assert "stopped after step 2 of 5" in capsys.readouterr().err
    assert newest_checkpoint("new").name == "step-000002"
    assert signal.getsignal(number) is before


def test_sample_writes_every_picture(run, capsys, tmp_path):
    from PIL import Image

    main(["sample", run, "--out", "pictures", "--count", "3", "--steps", "2", "--batch-size", "2"])
    names = ["images", *[f"images/000{i}.png" for i in range(3)], "samples.png"]
    assert files(tmp_path / "pictures") == names
    with Image.open("pictures/images/0002.png") as image:
        assert (image.size, image.mode) == ((16, 16), "L")
    assert str(Path("pictures/samples.png")) in capsys.readouterr().out


def test_sample_again_replaces_the_pictures(run, tmp_path):
    for count in ("3", "1"):
        main(
            ["sample", run, "--out", "pictures", "--count", count, "--steps", "1", "--sampler", "ddim", "--size", "20"]
        )
    assert files(tmp_path / "pictures") == ["images", "images/0000.png", "samples.png"]


@pytest.mark.parametrize("name", bundled())
def test_bundled_models_sample_by_name(name, tmp_path):
    main(["sample", name, "--out", "pictures", "--count", "1", "--steps", "1"])
    assert (tmp_path / "pictures" / "samples.png").is_file()


def test_evaluate_prints_and_writes_the_same(run, capsys):
    main(["evaluate", run, "--samples", "4", "--steps", "1", "--out", "results/one.json"])
    result = json.loads(Path("results/one.json").read_text())
    assert f"{result['frechet']:.2f}" in capsys.readouterr().out
    assert (result["model"], result["samples"], result["steps"], result["seed"]) == ("run", 4, 1, 0)
    assert set(result["real_digits"]) == {"frechet", "confident"}
    assert set(result["measured"]) == {"command", "commit", "device", "threads", "versions"}


def test_evaluate_refuses_a_model_of_other_images(tiny, refused):
    from dyndiff import UNet, cosine

    Denoiser(UNet(tiny), cosine()).save("tiny")
    assert "only models of 16x16 grey digits" in refused("evaluate", "tiny")


def test_profile_as_json_parses(capsys):
    main(["profile", "unet-digits", "cunet-digits", "--json", "--repeats", "2"])
    unet, cunet = json.loads(capsys.readouterr().out)
    assert [unet["name"], cunet["name"]] == ["unet-digits", "cunet-digits"]
    assert {"name", "params", "flops", "latency_s", "peak_bytes"} <= set(unet)
    assert cunet["params"] < unet["params"]


def test_profile_as_a_table_compares_with_the_first(capsys):
    main(["profile", "unet-digits", "cunet-digits", "--repeats", "2", "--size", "8", "--batch-size", "2"])
    out = capsys.readouterr().out
    assert "unet-digits" in out
    assert "(100%)" in out


def test_demo_from_end_to_end(capsys, tmp_path):
    """With two steps of training: it says so of what it has drawn, and writes all the same."""
    command = ["demo", "--steps", "3", "--batch-size", "4", "--samples", "20", "--sampling-steps", "2"]
    main(command)
    out = capsys.readouterr().out
    assert all(str(Path("demo") / name) in out for name in ("samples.png", "training.png", "comparison.json"))
    comparison = json.loads(Path("demo/comparison.json").read_text())
    assert [model["name"] for model in comparison["models"]] == ["unet-digits", "cunet-digits"]
    assert comparison["config"]["steps"] == 3
    assert all(Path("demo", name).read_bytes().startswith(b"\x89PNG") for name in ("samples.png", "training.png"))

    before = comparison["models"][0]["frechet"]
    main(command)
    assert capsys.readouterr().out.count("all 3 steps are done already") == 2
    assert json.loads(Path("demo/comparison.json").read_text())["models"][0]["frechet"] == before


def test_module_runs_as_the_command_does(tmp_path):
    process = start("sample", "nosuch", "--out", "new", cwd=tmp_path)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert re.fullmatch(r"dyndiff: no model 'nosuch'[^\n]+\n", err)
    assert files(tmp_path) == []
