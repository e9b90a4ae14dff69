"""The experiments behind the records: what they compare is equal, and what is done is not done again."""

import json

import pytest
import torch

from dyndiff import Denoiser, cosine, create_model
from dyndiff.denoiser import denoising_loss, perturb
from dyndiff.experiments.costs import costs
from dyndiff.experiments.equal import KINDS, distillation, equal, half_width, network, table
from dyndiff.presets import PRESETS
from dyndiff.profile import count_flops, count_parameters
from dyndiff.records import RESULTS, read_result
from dyndiff.unet import UNet

FEW = {"kinds": ("unet", "cunet", "thin", "distilled"), "seeds": 1, "steps": 10, "batch_size": 4, "samples": 8}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A tiny experiment and its folder."""
    folder = tmp_path_factory.mktemp("equal")
    equal("digits", out=folder, **FEW)
    return folder, json.loads((folder / "equal.json").read_text())


def test_every_network_is_a_row_and_two_are_rows_at_equal_flops_too(finished):
    """With the cunet's FLOPs, the U-Net makes 24% of the steps and the thin one 121%."""
    _, record = finished
    rows = [(row["name"].split("-")[0], row["steps"]) for row in record["table"]]
    assert rows == [*((kind, 10) for kind in FEW["kinds"]), ("unet", 2), ("thin", 12)]
    assert record["matched_steps"] == {"unet": 2, "thin": 12}


def test_a_curve_counts_three_forward_passes_a_step(finished):
    _, record = finished
    for run in record["runs"]:
        last = run["curve"][-1]
        assert last["step"] == run["config"]["steps"]
        assert last["flops"] == 3 * run["flops"] * 4 * last["step"]


def test_what_is_there_is_not_run_again(finished):
    folder, record = finished
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*seed-0*")}
    equal("digits", out=folder, **FEW)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*seed-0*")} == before
    assert json.loads((folder / "equal.json").read_text())["table"] == record["table"]


def test_another_configuration_needs_another_folder(finished):
    folder, _ = finished
    with pytest.raises(ValueError, match="another configuration"):
        equal("digits", out=folder, **{**FEW, "batch_size": 5})


@pytest.mark.parametrize("change", [{"scale": "huge"}, {"kinds": ("unet", "fat")}])
def test_unknown_names_are_refused(change, tmp_path):
    with pytest.raises(ValueError, match="choose from"):
        equal(change.pop("scale", "digits"), out=tmp_path, **{**FEW, **change})
    assert not list(tmp_path.iterdir())


def test_distillation_is_half_the_data_and_half_the_teacher():
    """Its gradient is the mean of two: of the loss on data, and of the distance to the teacher."""
    torch.manual_seed(0)
    student, teacher = (Denoiser(create_model(f"{kind}-digits"), cosine(), "v") for kind in ("cunet", "unet"))
    for model in (student, teacher):
        for parameter in model.net.head.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    x0, eps, t = torch.randn(4, 1, 16, 16), torch.randn(4, 1, 16, 16), torch.rand(4)
    x = perturb(cosine(), x0, t, eps)

    def gradient(loss):
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(student.net.parameters()))])

    from_data = gradient(denoising_loss(student, x0, t, eps))
    from_teacher = gradient((student.net(x, t) - teacher.net(x, t).detach()).square().mean())
    found = gradient(distillation(teacher)(student, x0, t, eps, None))
    torch.testing.assert_close(found, 0.5 * (from_data + from_teacher), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("scale", ["digits", "mnist", "cifar10", "paper"])
def test_wide_keeps_the_abstracts_promise(scale):
    """A quarter of the U-Net's parameters and 30% of its FLOPs, at most."""
    unet, wide = (UNet(network(kind, scale)) for kind in ("unet", "wide"))
    x = torch.zeros(1, unet.config.channels, unet.config.size, unet.config.size), torch.ones(1)
    assert count_parameters(wide) <= 0.25 * count_parameters(unet)
    assert count_flops(wide, x) <= 0.301 * count_flops(unet, x)


def test_kinds_are_presets_but_for_two():
    assert [kind for kind in KINDS if f"{kind}-digits" not in PRESETS] == ["wide", "distilled"]


def test_a_table_has_means_and_intervals():
    def run(v):
        curve = [{"v": v, "eps": v / 2}]
        return {"name": "unet-digits", "params": 1, "flops": 2, "config": {"steps": 10}, "curve": curve}

    [row] = table([run(1.0), run(2.0), run(3.0)])
    assert (row["v"], row["seeds"]) == (2.0, 3)
    assert row["v_95"] == pytest.approx(4.303 / 3**0.5)  # Student's, two degrees of freedom, deviation 1
    assert half_width([1.0]) is None


def test_costs_are_one_record(tmp_path, capsys):
    costs("digits", out=tmp_path / "costs.json", kinds=("unet", "cunet"), repeats=2, memory_steps=(1, 8))
    record = json.loads((tmp_path / "costs.json").read_text())
    assert [run["batch_size"] for run in record["runs"]] == [1, 16]
    assert [profile["name"] for profile in record["runs"][0]["profiles"]] == ["unet-digits", "cunet-digits"]
    peak = {(row["gradient"], row["steps"]): row["bytes"] for row in record["memory"]}
    assert peak["reversible", 8] < 1.15 * peak["reversible", 1] < peak["backprop", 8]
    assert "cunet-digits" in capsys.readouterr().out


def test_every_record_says_how_it_was_made():
    for path in RESULTS.glob("*.json"):
        measured = read_result(path.stem)["measured"]
        assert measured["command"]
        assert measured["commit"]


def test_an_unknown_record_is_named():
    with pytest.raises(ValueError, match="no record 'nothing'; there are"):
        read_result("nothing")
