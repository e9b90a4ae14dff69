"""Training: it learns, it repeats, and it survives being stopped, killed and damaged."""

import json
import math
import os
import re
import resource
import shutil
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save_file

from dyndiff import Denoiser, Images, Run, TrainConfig, UNet, cosine, load_images, to_unit, train
from dyndiff.denoiser import denoising_loss
from dyndiff.files import checkpoints
from dyndiff.seeds import generator_for

TRAINING = import_module("dyndiff.run")
"""The module that writes checkpoints."""


@pytest.fixture(scope="module")
def images() -> Images:
    """Twenty small shapes: a batch of eight straddles the epochs."""
    shapes = load_images("shapes", size=8)
    return replace(shapes, pixels=shapes.pixels[:20], labels=shapes.labels[:20])


@pytest.fixture
def new_run(tiny):
    """`new_run(steps=12)`: a run from the same weights each time."""

    def make(**config) -> Run:
        torch.manual_seed(0)
        return Run(
            Denoiser(UNet(replace(tiny, block="dynamic")), cosine(), "v"),
            TrainConfig(**{"steps": 12, "batch_size": 8, **config}),
        )

    return make


def finish(run: Run, images: Images, loss_of=denoising_loss) -> Run:
    for _ in train(run, images, loss_of):
        pass
    return run


def advance(run: Run, images: Images, steps: int) -> Run:
    for _, step in zip(range(steps), train(run, images), strict=False):
        assert step.step == run.step
    return run


def assert_equal_runs(one: Run, other: Run) -> None:
    """Bit for bit: weights, average, Adam's moments, losses."""
    assert (one.config, one.step, one.losses) == (other.config, other.step, other.losses)
    for ours, theirs in ((one.denoiser, other.denoiser), (one.ema, other.ema)):
        assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    mine, yours = one._tensors(), other._tensors()
    assert mine.keys() == yours.keys()
    assert all(torch.equal(mine[name], yours[name]) for name in mine)


def test_loss_falls(new_run, images):
    losses = finish(new_run(steps=60, batch_size=16, learning_rate=5e-3), images).losses
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])


def test_same_seed_same_run(new_run, images):
    assert_equal_runs(finish(new_run(), images), finish(new_run(), images))


def test_other_seed_other_run(new_run, images):
    assert finish(new_run(seed=1), images).losses[0] != finish(new_run(), images).losses[0]


@pytest.mark.parametrize("count", [20, 16, 3])
@pytest.mark.parametrize("stop", [1, 5])
def test_resumed_run_equals_one_that_never_stopped(stop, count, new_run, images, tmp_path):
    """Whether the batches straddle the epochs (20), fill them (16) or hold several (3 images)."""
    few = replace(images, pixels=images.pixels[:count], labels=images.labels[:count])
    advance(new_run(), few, stop).save(tmp_path)
    resumed = Run.resume(tmp_path)
    assert resumed.step == stop
    assert_equal_runs(finish(resumed, few), finish(new_run(), few))


def test_a_run_saved_before_its_first_step_can_be_resumed(new_run, images, tmp_path):
    new_run().save(tmp_path)
    assert_equal_runs(finish(Run.resume(tmp_path), images), finish(new_run(), images))


def test_torchs_own_generator_does_not_matter(new_run, images):
    run = new_run()
    torch.manual_seed(123)
    assert_equal_runs(finish(run, images), finish(new_run(), images))


class Spy:
    """A loss that remembers the batches and times that it was asked for."""

    def __init__(self) -> None:
        self.seen = []

    def __call__(self, denoiser, x0, t, eps, labels, **options):
        self.seen.append((x0, t))
        return denoising_loss(denoiser, x0, t, eps, labels, **options)


def test_every_epoch_shows_every_image_once_in_another_order(new_run, images):
    finish(new_run(steps=5), images, spy := Spy())  # 5 batches of 8: two epochs of 20
    shown = torch.cat([x0 for x0, _ in spy.seen])
    known = to_unit(images.pixels)
    order = [int((known == image).flatten(1).all(1).nonzero()[0]) for image in shown]
    assert sorted(order[:20]) == sorted(order[20:]) == list(range(20))
    assert order[:20] != order[20:]


def test_times_are_spread_over_the_batch(new_run, images):
    """One in each eighth of (0, 1], at another place in every step."""
    finish(new_run(), images, spy := Spy())
    for _, t in spy.seen:
        assert ((t > torch.arange(8) / 8) & (t <= torch.arange(1, 9) / 8)).all()
    assert len({float(t[0]) for _, t in spy.seen}) == len(spy.seen)


def test_half_of_the_images_are_mirrored_where_that_does_no_harm(new_run, images):
    """And nothing else is drawn differently."""
    finish(new_run(steps=20), images, plain := Spy())
    finish(new_run(steps=20), replace(images, flips=True), flipped := Spy())
    turned = 0
    for (x0, t), (mirrored, same_t) in zip(plain.seen, flipped.seen, strict=True):
        assert torch.equal(t, same_t)
        for image, other in zip(x0, mirrored, strict=True):
            assert torch.equal(other, image) or torch.equal(other, image.flip(-1))
            turned += not torch.equal(other, image)
    assert 50 < turned < 110  # of 160


def test_average_is_the_moving_average_of_the_weights(new_run, images):
    run = new_run(ema_decay=0.6)
    average = run.denoiser.net.stem.weight.detach().clone()
    for n, _ in enumerate(train(run, images)):
        decay = min(0.6, (1 + n) / (10 + n))
        average = decay * average + (1 - decay) * run.denoiser.net.stem.weight.detach()
    torch.testing.assert_close(run.ema.net.stem.weight, average)


def test_learning_rate_rises_then_falls_to_zero():
    config = TrainConfig(steps=1000, learning_rate=0.01, warmup=100)
    rates = [config.learning_rate_at(step) for step in range(1000)]
    assert rates[0] == pytest.approx(0.01 / 100)
    assert rates[:100] == sorted(rates[:100])
    assert rates[100:] == sorted(rates[100:], reverse=True)
    assert max(rates) == pytest.approx(0.01, rel=0.03)
    assert rates[-1] < 1e-7


def test_a_run_of_one_step_is_a_run(new_run, images):
    assert len(finish(new_run(steps=1), images).losses) == 1


def test_a_finished_run_has_nothing_left_to_do(new_run, images):
    assert list(train(finish(new_run(), images), images)) == []


def test_save_leaves_one_checkpoint_and_nothing_else(new_run, images, tmp_path):
    run = new_run()
    for step in (1, 2, 2):
        advance(run, images, step - run.step)
        path = run.save(tmp_path)
    assert list(tmp_path.iterdir()) == [path]
    assert path.name == "step-000002"


def test_save_makes_its_folder(new_run, tmp_path):
    assert new_run().save(tmp_path / "runs" / "new").is_dir()


def test_checkpoint_is_a_model_to_load(new_run, images, tmp_path):
    run = advance(new_run(), images, 2)
    run.save(tmp_path)
    x, t = torch.randn(1, 1, 8, 8), torch.ones(1)
    assert torch.equal(Denoiser.load(tmp_path)(x, t), run.ema(x, t))


def test_checkpoints_are_kept_as_asked(new_run, images, tmp_path):
    run = new_run()
    for _ in range(4):
        advance(run, images, 1).save(tmp_path, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000003", "step-000004"]


CRASHES = {"tensors": (TRAINING, "write_tensors"), "json": (TRAINING, "write_json"), "rename": (os, "replace")}


@pytest.mark.parametrize("ahead", [1, 0], ids=["next step", "same step"])
@pytest.mark.parametrize("where", CRASHES)
def test_a_crash_while_saving_leaves_the_old_checkpoint(where, ahead, new_run, images, tmp_path, monkeypatch):
    """At the last rename too: the earlier ones, of the files within, go through."""
    run = advance(new_run(), images, 2)
    run.save(tmp_path)
    before = Run.resume(tmp_path)
    advance(run, images, ahead)
    module, name = CRASHES[where]
    original = getattr(module, name)

    def crash(*args):
        if where != "rename" or Path(args[1]).name.startswith("step-"):
            monkeypatch.setattr(module, name, original)  # once: what tidies up may rename as well
            raise OSError("no space left on device")
        original(*args)

    monkeypatch.setattr(module, name, crash)
    with pytest.raises(OSError, match="no space left"):
        run.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000002"]
    assert_equal_runs(Run.resume(tmp_path), before)
    run.save(tmp_path)
    assert_equal_runs(Run.resume(tmp_path), run)


def test_a_full_disk_leaves_the_old_checkpoint(new_run, images, tmp_path):
    """A limit on the size of files stands for the disk."""
    run = advance(new_run(), images, 1)
    run.save(tmp_path)
    before = Run.resume(tmp_path)
    advance(run, images, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError):
            run.save(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]
    assert_equal_runs(Run.resume(tmp_path), before)


def rewrite_json(**changes):
    """Change training.json; `...` removes an entry, and a dictionary is merged."""

    def damage(checkpoint):
        saved = json.loads((checkpoint / "training.json").read_text())
        for key, value in changes.items():
            saved[key] = {**saved[key], **value} if isinstance(value, dict) else value
            if value is ...:
                del saved[key]
        (checkpoint / "training.json").write_text(json.dumps(saved))

    return damage


def rewrite_tensors(change):
    def damage(checkpoint):
        tensors = load((checkpoint / "training.safetensors").read_bytes())
        change(tensors)
        save_file(tensors, checkpoint / "training.safetensors")

    return damage


def replace_tensor(name, value):
    return rewrite_tensors(lambda tensors: tensors.update({name: value}))


def truncate(name):
    return lambda checkpoint: (checkpoint / name).write_bytes((checkpoint / name).read_bytes()[:-40])


DAMAGES = {
    "warmup is text": rewrite_json(config={"warmup": "100"}),
    "a loss is too long for a float": rewrite_json(losses=[0.5, 10**400]),
    "json missing": lambda checkpoint: (checkpoint / "training.json").unlink(),
    "json cut short": truncate("training.json"),
    "json is a list": lambda checkpoint: (checkpoint / "training.json").write_text("[]"),
    "no config": rewrite_json(config=...),
    "no losses": rewrite_json(losses=...),
    "config is null": rewrite_json(config=None),
    "unknown setting": rewrite_json(config={"momentum": 0.9}),
    "steps is text": rewrite_json(config={"steps": "12"}),
    "steps is negative": rewrite_json(config={"steps": -12}),
    "losses are null": rewrite_json(losses=None),
    "losses are text": rewrite_json(losses=["low", "lower"]),
    "losses are fewer than the steps": rewrite_json(losses=[1.0]),
    "tensors missing": lambda checkpoint: (checkpoint / "training.safetensors").unlink(),
    "tensors cut short": truncate("training.safetensors"),
    "tensors are noise": lambda checkpoint: (checkpoint / "training.safetensors").write_bytes(bytes(range(256)) * 4),
    "no moments": rewrite_tensors(lambda tensors: [tensors.pop(name) for name in list(tensors) if "adam" in name]),
    "no weights": rewrite_tensors(lambda tensors: [tensors.pop(name) for name in list(tensors) if "net." in name]),
    "moment of another shape": replace_tensor("adam.exp_avg.stem.bias", torch.ones(3)),
    "moment is a scalar": replace_tensor("adam.exp_avg.stem.bias", torch.ones(())),
    "step of another shape": replace_tensor("adam.step.stem.bias", torch.ones(3)),
    "weight of another shape": replace_tensor("net.stem.bias", torch.ones(3)),
    "model missing": lambda checkpoint: (checkpoint / "model.safetensors").unlink(),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_a_value_error_that_names_it(damage, new_run, images, tmp_path):
    checkpoint = advance(new_run(), images, 2).save(tmp_path)
    damage(checkpoint)
    for trusted in (False, True):  # by its manifest, and without one
        with pytest.raises(ValueError, match=re.escape(str(checkpoint))) as caught:
            Run.resume(tmp_path)
        assert "\n" not in str(caught.value)
        if not trusted:
            (checkpoint / "manifest.json").unlink()


def test_a_weight_that_has_changed_is_noticed(new_run, images, tmp_path):
    checkpoint = advance(new_run(), images, 2).save(tmp_path)
    for name in ("model.safetensors", "training.safetensors"):
        whole = (checkpoint / name).read_bytes()
        (checkpoint / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(ValueError, match=f"{name}' is damaged: it is not the file that was written"):
            Run.resume(tmp_path)
        (checkpoint / name).write_bytes(whole)
    Run.resume(tmp_path)


def test_checkpoints_of_two_networks_do_not_mix(new_run, images, tiny, tmp_path):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    checkpoint = advance(new_run(), images, 1).save(tmp_path / "one")
    other = Run(Denoiser(UNet(replace(tiny, widths=(8, 8))), cosine(), "v"), TrainConfig(batch_size=8))
    shutil.copy(advance(other, images, 1).save(tmp_path / "other") / "training.safetensors", checkpoint)
    with pytest.raises(ValueError, match=re.escape(str(checkpoint))):
        Run.resume(tmp_path / "one")


@pytest.mark.parametrize("folder", ["nosuch", "."])
def test_nothing_to_resume_is_a_value_error(folder, tmp_path):
    with pytest.raises(ValueError, match="no checkpoint to resume"):
        Run.resume(tmp_path / folder)


def test_loss_that_is_no_number_names_the_step(new_run, images):
    run = advance(new_run(), images, 2)
    with torch.no_grad():
        run.denoiser.net.stem.weight[0] = math.nan
    with pytest.raises(ValueError, match="loss became nan in step 3"):
        next(train(run, images))
    assert run.step == len(run.losses) == 2


def test_images_of_another_number_of_channels_are_refused(new_run, images):
    colour = replace(images, pixels=images.pixels.expand(-1, 3, -1, -1))
    with pytest.raises(ValueError, match=r"\(B, 1, H, W\), got \(8, 3, 8, 8\)"):
        next(train(new_run(), colour))


def test_a_run_of_other_settings_says_what_differs(new_run):
    run = new_run()
    run.require(TrainConfig(**asdict(run.config)))
    with pytest.raises(ValueError, match=r"steps = 12 \(asked for: 13\), seed = 0 \(asked for: 4\)"):
        run.require(replace(run.config, steps=13, seed=4))


BAD = [
    {"accumulate": 0}, {"precision": "fp8"}, {"steps": 2.5}, {"warmup": "100"}, {"seed": True}, {"compiled": None},
    {"steps": 0}, {"batch_size": 0}, {"learning_rate": 0.0}, {"learning_rate": -1e-3}, {"learning_rate": math.nan},
    {"ema_decay": 1.0}, {"ema_decay": -0.1}, {"ema_decay": math.nan}, {"clip_norm": -1.0}, {"clip_norm": math.nan},
    {"seed": -1}, {"learning_rate": math.inf},
]  # fmt: skip


@pytest.mark.parametrize("setting", BAD, ids=str)
def test_config_refuses_what_cannot_train(setting):
    ((name, value),) = setting.items()
    with pytest.raises(ValueError, match=f"{name.split('_')[0]}.*{re.escape(repr(value))}"):
        TrainConfig(**setting)


def test_generators_are_told_apart_by_seed_and_purpose():
    names = [
        (0, "noise", 1),
        (0, "noise", 2),
        (0, "order", 1),
        (1, "noise", 1),
        (2**32, "noise", 1),
        (0, "noise", 2**32),
    ]
    draws = [torch.rand(4, generator=generator_for(*name)) for name in names]
    assert len(torch.unique(torch.stack(draws), dim=0)) == len(names)
    assert torch.equal(draws[0], torch.rand(4, generator=generator_for(*names[0])))


def test_seeds_are_not_negative():
    with pytest.raises(ValueError, match="negative, got -1"):
        generator_for(-1, "noise")


def test_checkpoints_are_folders_named_by_their_step(tmp_path):
    for name in ("step-000001", "step-000002", "step-last", ".step-000003-x", "images"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-000009").touch()
    assert sorted(path.name for path in checkpoints(tmp_path)) == ["step-000001", "step-000002"]
