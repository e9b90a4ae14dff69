"""Pictures: the right image in the right place."""

import torch

from dyndiff.plots import COLOURS, colour, image_grids, save_figure, tile, training_curves


def test_tile_lays_images_out_row_by_row_on_white():
    values = torch.tensor([-1.0, -0.5, 0.0, 0.5, 5.0])
    sheet = tile(values.reshape(5, 1, 1, 1).expand(5, 1, 3, 3), columns=2, gap=1)
    assert sheet.shape == (11, 7, 1)
    assert sheet[::4, ::4, 0].tolist() == [[0, 0.25], [0.5, 0.75], [1, 1]]  # the last place is empty
    assert (sheet[3] == 1).all()


def test_tile_keeps_colour():
    assert tile(torch.zeros(2, 3, 4, 4), columns=2, gap=0).shape == (4, 8, 3)


def test_a_name_has_the_colour_of_its_first_word():
    assert (colour("cunet-digits"), colour("unet-x")) == (COLOURS["cunet"], COLOURS["unet"])
    assert colour("real digits") == COLOURS["data"]


def test_figures_are_written_as_png(tmp_path):
    save_figure(image_grids({"one": torch.zeros(3, 1, 8, 8), "two": torch.ones(3, 1, 8, 8)}), tmp_path / "grid.png")
    save_figure(training_curves({"unet-digits": [1.0, 0.5], "cunet-digits": [1.0]}), tmp_path / "curves.png")
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in ("grid.png", "curves.png"))
