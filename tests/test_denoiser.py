"""The denoiser: targets, loss, and files that are whole or refused."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save_file

from dyndiff import Denoiser, Schedule, UNet, bundled, cosine, denoising_loss, perturb
from dyndiff.denoiser import TARGETS
from dyndiff.schedules import SCHEDULES, create_schedule

B = 6


@pytest.fixture
def batch():
    """Clean images, noise and times, one of them 1; float64, and as wide as the batch."""
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, B, 2, 3, B, generator=generator, dtype=torch.float64)
    return x0, eps, torch.tensor([0.001, 0.1, 0.4, 0.7, 0.95, 1.0], dtype=torch.float64)


def exact_net(schedule, target, x0, eps, t):
    """A network that knows the answer: equations 4 of Ho et al. and v of Salimans and Ho, by hand."""
    alpha, sigma = schedule.alpha(t).reshape(B, 1, 1, 1), schedule.sigma(t).reshape(B, 1, 1, 1)
    answer = {"eps": eps, "x0": x0, "v": alpha * eps - sigma * x0}[target]
    return lambda x, t: answer


@pytest.fixture
def saved(tiny, randomised, tmp_path) -> Path:
    """The folder of a saved model."""
    Denoiser(randomised(UNet(tiny)), cosine(), "v").save(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("target", TARGETS)
def test_exact_prediction_gives_back_the_clean_image(name, target, batch):
    x0, eps, t = batch
    schedule = create_schedule(name)
    if target == "eps" and name.endswith("-zero"):
        t = t.clamp(max=0.9)  # at the end there is no signal, and eps says nothing of x0
    denoiser = Denoiser(exact_net(schedule, target, x0, eps, t), schedule, target)
    # eps divides by alpha(1) of about 1e-4, so four of float64's sixteen digits go
    torch.testing.assert_close(denoiser(perturb(schedule, x0, t, eps), t), x0, atol=1e-11, rtol=0)


@pytest.mark.parametrize("target", TARGETS)
def test_loss_of_an_exact_prediction_is_zero(target, batch):
    x0, eps, t = batch
    denoiser = Denoiser(exact_net(cosine(), target, x0, eps, t), cosine(), target)
    assert denoising_loss(denoiser, x0, t, eps) < 1e-30


def test_loss_of_a_fresh_network_is_the_targets_mean_square(tiny, batch):
    """A fresh U-Net returns 0."""
    _, _, t = batch
    x0, eps = torch.randn(2, B, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    loss = denoising_loss(Denoiser(UNet(tiny), cosine(), "eps"), x0, t, eps)
    torch.testing.assert_close(loss, eps.square().mean())


def test_network_sees_the_noisy_image_and_its_own_time(batch):
    x0, eps, t = batch
    seen = []

    def net(x, t):
        seen.extend([x, t])
        return x

    denoising_loss(Denoiser(net, cosine(), "x0"), x0.float(), t, eps.float())
    torch.testing.assert_close(seen[0], perturb(cosine(), x0, t, eps).float())
    torch.testing.assert_close(seen[1], t.float())


def test_perturb_scales_each_sample_by_its_own_time(batch):
    """The batch is as wide as it is long: times along the width would pass unnoticed otherwise."""
    x0, eps, t = batch
    for i, x in enumerate(perturb(cosine(), x0, t, eps)):
        torch.testing.assert_close(x, cosine().alpha(t[i]) * x0[i] + cosine().sigma(t[i]) * eps[i])


def test_perturb_at_time_zero_changes_nothing(batch):
    x0, eps, _ = batch
    assert torch.equal(perturb(cosine(), x0, torch.zeros(B), eps), x0)


def test_unknown_target_lists_the_known(tiny):
    with pytest.raises(ValueError, match=r"'noise'.*eps, x0, v"):
        Denoiser(UNet(tiny), cosine(), "noise")


@pytest.mark.parametrize(("block", "name", "target"), [("res", "linear", "eps"), ("dynamic", "sigmoid", "x0")])
def test_saved_model_comes_back_bit_for_bit(block, name, target, tiny, randomised, tmp_path):
    net = randomised(UNet(replace(tiny, block=block, steps=3, method="rk4")))
    original = Denoiser(net, create_schedule(name, 500), target).eval()
    original.save(tmp_path / "new" / "model")
    loaded = Denoiser.load(tmp_path / "new" / "model")

    assert (loaded.net.config, loaded.schedule, loaded.target) == (net.config, original.schedule, target)
    assert not loaded.training
    weights = loaded.net.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in net.state_dict().items())
    x, t = torch.randn(3, 1, 8, 8), torch.rand(3)
    assert torch.equal(loaded(x, t), original(x, t))


def test_saved_model_is_json_and_safetensors(saved):
    assert sorted(path.name for path in saved.iterdir()) == ["config.json", "model.safetensors"]
    assert set(json.loads((saved / "config.json").read_text())) == {"net", "schedule", "target"}
    assert set(weights_in(saved)) == set(Denoiser.load(saved).net.state_dict())


def test_run_folder_gives_its_newest_checkpoint(saved, tiny, tmp_path):
    """By number: step-1000000 comes after step-999999, though not in the alphabet."""
    run = tmp_path / "run"
    Denoiser(UNet(tiny), cosine(), "eps").save(run / "step-999999")
    shutil.copytree(saved, run / "step-1000000")
    assert Denoiser.load(run).target == "v"


@pytest.mark.parametrize("schedule", [Schedule((0.1, 0.2)), Schedule((0.1, 0.2), "cosine")])
def test_what_a_config_cannot_describe_is_not_saved(schedule, tiny, tmp_path):
    with pytest.raises(ValueError, match="SCHEDULES"):
        Denoiser(UNet(tiny), schedule).save(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_another_network_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="UNet"):
        Denoiser(torch.nn.Conv2d(1, 1, 1), cosine()).save(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def weights_in(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a saved model, read and not mapped: the file may be overwritten."""
    return load((folder / "model.safetensors").read_bytes())


def remove(name):
    return lambda folder: (folder / name).unlink()


def truncate(name):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-40])


def empty(name):
    return lambda folder: (folder / name).write_bytes(b"")


def noise(name):
    return lambda folder: (folder / name).write_bytes(bytes(range(256)) * 4)


def foreign(folder):
    save_file({"conv.weight": torch.zeros(3)}, folder / "model.safetensors")


def reshaped(folder):
    weights = weights_in(folder)
    weights["stem.bias"] = weights["stem.bias"][:2].clone()
    save_file(weights, folder / "model.safetensors")


def pickled(folder):
    torch.save(weights_in(folder), folder / "model.safetensors")


def config(*keys, value):
    """Set one entry of config.json, or remove it where the value is `...`."""

    def mutate(folder):
        entries = inner = json.loads((folder / "config.json").read_text())
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value
        if value is ...:
            del inner[keys[-1]]
        (folder / "config.json").write_text(json.dumps(entries))

    return mutate


DAMAGES = {
    "no config": remove("config.json"),
    "no weights": remove("model.safetensors"),
    "weights cut short": truncate("model.safetensors"),
    "weights empty": empty("model.safetensors"),
    "weights are noise": noise("model.safetensors"),
    "config cut short": truncate("config.json"),
    "config is noise": noise("config.json"),
    "config is a list": lambda folder: (folder / "config.json").write_text("[]"),
    "foreign weights": foreign,
    "weights of another shape": reshaped,
    "pickle": pickled,
    "no net": config("net", value=...),
    "no schedule": config("schedule", value=...),
    "no target": config("target", value=...),
    "net is null": config("net", value=None),
    "net is a list": config("net", value=[]),
    "unknown setting": config("net", "colour", value="red"),
    "channels is text": config("net", "channels", value="1"),
    "channels is 0": config("net", "channels", value=0),
    "channels without bound": config("net", "channels", value=10**30),
    "size is text": config("net", "size", value="8"),
    "size is negative": config("net", "size", value=-8),
    "widths is a number": config("net", "widths", value=8),
    "widths is empty": config("net", "widths", value=[]),
    "widths are text": config("net", "widths", value=["4", "8"]),
    "other widths": config("net", "widths", value=[8, 8]),
    "odd widths": config("net", "widths", value=[5, 9]),
    "widths without bound": config("net", "widths", value=[4, 10**12]),
    "depth is a fraction": config("net", "depth", value=1.5),
    "depth is more": config("net", "depth", value=2),
    "attention is elsewhere": config("net", "attention", value=[0]),
    "another block": config("net", "block", value="dynamic"),
    "unknown block": config("net", "block", value="transformer"),
    "unknown method": config("net", "method", value="verlet"),
    "steps is a fraction": config("net", "steps", value=1.5),
    "steps is 0": config("net", "steps", value=0),
    "schedule is null": config("schedule", value=None),
    "unknown schedule": config("schedule", "name", value="quadratic"),
    "schedule of 0 steps": config("schedule", "steps", value=0),
    "schedule of text": config("schedule", "steps", value="1000"),
    "unknown schedule setting": config("schedule", "beta_end", value=0.02),
    "unknown target": config("target", value="noise"),
    "target is a list": config("target", value=["v"]),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_model_is_a_value_error_that_names_the_folder(damage, saved):
    damage(saved)
    with pytest.raises(ValueError, match=re.escape(str(saved))) as caught:
        Denoiser.load(saved)
    assert "\n" not in str(caught.value)


def test_pickle_is_never_run(saved, tmp_path):
    class Payload:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "owned",))

    torch.save(Payload(), saved / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        Denoiser.load(saved)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("source", ["nosuch", "", "nosuch/deeper"])
def test_unknown_model_is_refused(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"no model '{source}'"):
        Denoiser.load(source)


@pytest.mark.parametrize("name", bundled())
def test_bundled_models_load_by_name_and_run(name):
    denoiser = Denoiser.load(name)
    config = denoiser.net.config
    x = torch.randn(2, config.channels, config.size, config.size, generator=torch.Generator().manual_seed(0))
    assert denoiser(x, torch.tensor([0.3, 1.0])).isfinite().all()
