"""A step is the same step in slices, over processes, in another precision, compiled."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from dyndiff import Denoiser, Run, TrainConfig, UNet, cosine, load_images, train
from dyndiff.cli import main
from dyndiff.denoiser import denoising_loss
from dyndiff.files import newest_checkpoint, read_tensors

PACKAGE = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def images():
    return load_images("shapes", size=8)


@pytest.fixture
def new_run(tiny):
    """`new_run(steps=6)`: a run from the same weights each time."""

    def make(net=tiny, dtype=torch.float32, **config):
        torch.manual_seed(0)
        return Run(Denoiser(UNet(net).to(dtype), cosine(), "v"), TrainConfig(**{"steps": 6, "batch_size": 8, **config}))

    return make


def finish(run, images, loss_of=denoising_loss):
    for _ in train(run, images, loss_of):
        pass
    return run


def difference(one, other):
    """Of two sets of weights: the length of their difference over their own, and the largest difference."""
    ours, theirs = (torch.cat([value.detach().flatten().double() for value in weights]) for weights in (one, other))
    return float((ours - theirs).norm() / ours.norm()), float((ours - theirs).abs().max())


@pytest.mark.parametrize("slices", [2, 8])
@pytest.mark.parametrize("classes", [0, 3])
def test_a_batch_in_slices_makes_the_same_run(slices, classes, new_run, images, tiny):
    """In float64: where a gradient is 0 but for its rounding, Adam's division makes much of float32's."""

    def loss_of(denoiser, x0, t, eps, labels, **options):
        return denoising_loss(denoiser, x0.double(), t, eps.double(), labels, **options)

    def made(**config):
        run = new_run(replace(tiny, classes=classes), torch.float64, **config)
        return finish(run, replace(images, flips=True), loss_of)

    whole, sliced = made(), made(accumulate=slices)
    assert sliced.losses == pytest.approx(whole.losses, abs=1e-6)
    assert difference(whole.denoiser.parameters(), sliced.denoiser.parameters())[1] < 1e-8


def test_a_batch_that_does_not_divide_is_refused(new_run):
    with pytest.raises(ValueError, match="processes x accumulate: got 8 images for 1 x 3"):
        new_run(accumulate=3)


def launch(*args, processes, cwd):
    """The command in several processes, which find each other by gloo."""
    command = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes),
               "--main_process_port", "0", "-m", "dyndiff", *args]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE), "ACCELERATE_USE_CPU": "true"}
    return subprocess.run(
        [sys.executable, *command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )


def trained_weights(folder):
    tensors = read_tensors(newest_checkpoint(folder) / "training.safetensors")
    return [value for name, value in sorted(tensors.items()) if name.startswith("net.")]


def test_two_processes_make_the_run_of_one(tmp_path, monkeypatch):
    """Slices of one batch differ in the order of their sums alone; Adam magnifies that by the learning rate."""
    monkeypatch.chdir(tmp_path)
    command = ["train", "cunet-digits", "--steps", "8", "--batch-size", "8", "--learning-rate", "1e-3"]
    result = launch(*command, "--out", "two", processes=2, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("Trained. Next:") == 1
    main([*command, "--out", "one"])
    assert sorted(os.listdir("two")) == ["run.json", "step-000008"]
    relative, largest = difference(trained_weights("one"), trained_weights("two"))
    assert relative < 1e-6
    assert largest < 1e-6


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_mixed_precision_trains_and_goes_on_bit_for_bit(precision, new_run, images, tmp_path):
    whole = new_run(precision=precision)
    for step in train(whole, images):
        if step.step == 3:
            whole.save(tmp_path)
    assert all(parameter.dtype == torch.float32 for parameter in whole.denoiser.parameters())
    assert abs(whole.losses[0] - finish(new_run(steps=1), images).losses[0]) < 0.02
    resumed = finish(Run.resume(tmp_path), images)
    assert resumed.losses == whole.losses
    assert resumed.scaler.state_dict() == whole.scaler.state_dict()
    assert difference(whole.denoiser.parameters(), resumed.denoiser.parameters())[1] == 0


def test_the_scaler_and_its_skipped_steps_survive_a_checkpoint(new_run, images, tmp_path):
    """A scale that overflows float16 at once: the first steps are dropped, and Adam has no moments yet."""
    whole = new_run(precision="fp16", steps=12)
    whole.scaler.load_state_dict({**whole.scaler.state_dict(), "scale": 2.0**30})
    for step in train(whole, images):
        if step.step == 2:
            assert not whole.optimizer.state
            whole.save(tmp_path)
    assert whole.scaler.get_scale() < 2.0**30
    assert whole.optimizer.state
    resumed = Run.resume(tmp_path)
    assert resumed.scaler.get_scale() == 2.0**28
    finish(resumed, images)
    assert difference(whole.denoiser.parameters(), resumed.denoiser.parameters())[1] == 0


def test_a_compiled_network_keeps_the_names_of_its_weights(new_run, images, tmp_path, monkeypatch):
    """Traced alone: what a compiler makes of the graph takes a minute, and is torch's affair."""
    monkeypatch.setattr(UNet, "compile", lambda net: nn.Module.compile(net, backend="eager"))
    compiled, plain = finish(new_run(compiled=True, steps=3), images), finish(new_run(steps=3), images)
    compiled.save(tmp_path)
    assert compiled.denoiser.state_dict().keys() == plain.denoiser.state_dict().keys()
    assert Run.resume(tmp_path).step == 3
    assert difference(compiled.denoiser.parameters(), plain.denoiser.parameters())[0] < 1e-5
