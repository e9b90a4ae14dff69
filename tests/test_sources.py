"""Images of every kind, from parquet files and folders: which are read, as what, and what is refused or left out."""

import random

import numpy as np
import pytest
import torch
from imagefiles import encoded, picture, write_parquet
from PIL import Image

from dyndiff import load_images
from dyndiff.hub import HUB
from dyndiff.sources import NoSplit, data_folder

pytest.importorskip("pyarrow")


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    """Nothing of the machine's own is found."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DYNDIFF_DATA", str(tmp_path))


def pixels(*images):
    """Channels first, as they should come out."""
    arrays = [np.asarray(image) for image in images]
    return torch.from_numpy(
        np.stack([array[None] if array.ndim == 2 else array.transpose(2, 0, 1) for array in arrays])
    )


@pytest.mark.parametrize("name", HUB)
def test_named_data_sets_are_read_as_their_table_says(name, tmp_path):
    entry = HUB[name]
    images = [picture(number, mode=entry.mode) for number in range(4)]
    labels = None if entry.label is None else [1, 0, 1, 9]
    write_parquet(tmp_path / name / "test.parquet", map(encoded, images), labels, entry.image, entry.label)
    read = load_images(name, "test", size=6)
    assert torch.equal(read.pixels, pixels(*images))
    assert read.labels.tolist() == (labels or [0] * 4)
    assert (read.labels.dtype, read.classes, read.flips) == (torch.int64, entry.classes, entry.flips)


@pytest.mark.parametrize("place", [
    "cifar10/train-{}-of-00002.parquet", "cifar10/plain_text/train-{}-of-00002.parquet",
    "cifar10/default/train/{}.parquet",
])  # fmt: skip
def test_the_hubs_layouts_are_found_in_a_folder(place, tmp_path):
    images = [picture(number) for number in range(5)]
    for part, own in enumerate([images[:3], images[3:]]):
        write_parquet(tmp_path / place.format(f"{part:05}"), map(encoded, own), [part] * len(own), "img")
    read = load_images("cifar10", size=6, data_dir=tmp_path)
    assert torch.equal(read.pixels, pixels(*images))
    assert read.labels.tolist() == [0, 0, 0, 1, 1]


def test_the_folder_of_data_sets(tmp_path, monkeypatch):
    assert str(data_folder("given")) == "given"
    assert data_folder() == tmp_path
    monkeypatch.delenv("DYNDIFF_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert data_folder() == tmp_path / "cache" / "dyndiff"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert data_folder() == tmp_path / "home" / ".cache" / "dyndiff"


def test_a_parquet_file_needs_no_description(tmp_path):
    images = [picture(number) for number in range(3)]
    write_parquet(tmp_path / "mine.parquet", map(encoded, images), [0, 2, 2], "photo", names=["cat", "dog", "elk"])
    read = load_images("mine.parquet", size=6)
    assert torch.equal(read.pixels, pixels(*images))
    assert (read.labels.tolist(), read.classes, read.flips) == ([0, 2, 2], ("cat", "dog", "elk"), False)
    with pytest.raises(NoSplit, match="'mine.parquet' is one file, and so it has no split 'test'"):
        load_images("mine.parquet", "test", size=6)


def test_a_folder_of_parquet_files_has_the_splits_that_its_names_say(tmp_path):
    one, two = picture(1), picture(2)
    write_parquet(tmp_path / "mine" / "a.parquet", [encoded(one)], [0])
    assert load_images("mine", size=6).classes == ("0",)
    with pytest.raises(NoSplit, match=r"no split 'test': no test.parquet or test-\*.parquet"):
        load_images("mine", "test", size=6)
    write_parquet(tmp_path / "mine" / "test-1.parquet", [encoded(two)], [0])
    assert torch.equal(load_images("mine", "test", size=6).pixels, pixels(two))
    with pytest.raises(NoSplit, match="no split 'train'"):
        load_images("mine", "train", size=6)


@pytest.fixture
def photos(tmp_path):
    """Two splits of two classes, numbered in the order of their names, written in another among other files."""
    files = {
        "train/cats/10.png": 0, "train/cats/9.PNG": 1, "train/cats/old/1.bmp": 2, "train/dogs/1.png": 3,
        "test/dogs/2.png": 4,
    }  # fmt: skip
    for name, number in random.Random(0).sample(sorted(files.items()), len(files)):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(path)
    for name in ("train/notes.txt", "train/cats/.hidden.png", "train/.cache/1.png"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("no picture")
    return tmp_path / "photos"


def test_a_folder_of_images(photos):
    """Sorted, at any depth; the folders below a split's are the classes, the same for both splits."""
    read = load_images("photos", size=6)
    assert torch.equal(read.pixels, pixels(*map(picture, range(4))))
    assert (read.labels.tolist(), read.classes) == ([0, 0, 0, 1], ("cats", "dogs"))
    test = load_images(str(photos), "test", size=6)
    assert torch.equal(test.pixels, pixels(picture(4)))
    assert (test.labels.tolist(), test.classes) == ([1], ("cats", "dogs"))


def test_a_folder_without_splits_is_all_to_train_on(photos):
    read = load_images("photos/train", size=6)
    assert (len(read), read.classes) == (4, ("cats", "dogs"))
    flat = load_images("photos/test/dogs", size=6)
    assert (flat.labels.tolist(), flat.classes) == ([0], ("dogs",))
    with pytest.raises(NoSplit, match="'photos/train' has no split 'test': no folder of that name"):
        load_images("photos/train", "test", size=6)


def test_what_is_no_data_set_is_said(photos, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="'empty' holds no image: no file that ends in .bmp, .gif"):
        load_images("empty", size=6)
    with pytest.raises(ValueError, match=r"notes.txt' must be a folder of images or a parquet file"):
        load_images("photos/train/notes.txt", size=6)


def save(name, image, **options):
    """A picture into the folder `mine`."""
    from pathlib import Path

    Path("mine").mkdir(exist_ok=True)
    image.save(Path("mine") / name, **options)


def test_images_of_grey_alone_have_one_channel(tmp_path):
    save("a.png", picture(1, mode="L"))
    save("b.png", picture(2, mode="L").convert("LA"))
    save("c.png", picture(3, mode="L").convert("1"))
    read = load_images("mine", size=6)
    assert read.pixels.shape == (3, 1, 6, 6)
    assert read.pixels[2].unique().tolist() == [0, 255]
    save("d.png", picture(4))
    assert load_images("mine", size=6).pixels.shape == (4, 3, 6, 6)


def test_what_changes_nothing_is_converted():
    """Palettes, grey among colour, an alpha channel that hides nothing; and a photo is put upright."""
    colour = picture(1)
    palette = colour.quantize(64)
    exif = Image.Exif()
    exif[0x0112] = 6  # taken with the camera turned to the left
    save("a.png", palette)
    save("b.png", colour.convert("L"))
    save("c.png", colour.convert("RGBA"))
    save("d.png", colour, exif=exif)
    grey = colour.convert("L").convert("RGB")
    expected = pixels(palette.convert("RGB"), grey, colour, colour.rotate(-90))
    assert torch.equal(load_images("mine", size=6).pixels, expected)


def test_grey_that_is_stored_as_colour_is_grey(tmp_path):
    grey = picture(1, mode="L")
    write_parquet(tmp_path / "mnist" / "train.parquet", [encoded(grey.convert("RGB"))], [0])
    assert torch.equal(load_images("mnist", size=6).pixels, pixels(grey))


@pytest.mark.parametrize(("image", "kind", "reason"), [
    (picture(1), "png", "is coloured, in a data set of grey images"),
    (picture(1, mode="LA"), "png", "is transparent in places; give it a background first"),
    (Image.new("I;16", (6, 6), 1000), "png", "is of mode I;16; 8-bit grey, RGB or a palette is needed"),
    (picture(1, mode="CMYK"), "jpeg", "is of mode CMYK"),
])  # fmt: skip
def test_what_would_lose_or_invent_something_is_refused(image, kind, reason, tmp_path):
    good = encoded(picture(0, mode="L"))
    write_parquet(tmp_path / "mnist" / "train.parquet", [good, encoded(image, kind)], [0, 0])
    with pytest.raises(ValueError, match=rf"mnist/train.parquet', row 1 {reason}"):
        load_images("mnist", size=6)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_the_middle_square_is_resized(mode):
    """Exactly cut where nothing is to be resized; a ramp stays a ramp where something is."""
    wide = picture(1, (10, 6), mode)
    save("a.png", wide)
    assert torch.equal(load_images("mine", size=6).pixels, pixels(wide.crop((2, 0, 8, 6))))
    ramp = Image.fromarray(np.tile(np.arange(0, 240, 10, dtype=np.uint8), (24, 1))).convert(mode)
    save("a.png", ramp)
    half = load_images("mine", size=12).pixels
    assert half.shape[-2:] == (12, 12)
    assert half[0, 0, 0, 1:-1].tolist() == list(range(25, 215, 20))


def test_celeba_is_cut_to_its_faces(tmp_path):
    face = picture(3, (178, 218))
    write_parquet(tmp_path / "celeba" / "train.parquet", [encoded(face)], image="image")
    assert torch.equal(load_images("celeba", size=178).pixels, pixels(face.crop((0, 20, 178, 198))))
    large = picture(4, (200, 220))
    write_parquet(tmp_path / "celeba" / "train.parquet", [encoded(large)], image="image")
    assert torch.equal(load_images("celeba", size=178).pixels, pixels(large.crop((11, 21, 189, 199))))


@pytest.fixture
def noise():
    """A larger image, whose file can be cut short in the middle of its pixels."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))


@pytest.mark.parametrize("kind", ["png", "jpeg", "bmp", "gif", "webp"])
def test_damaged_images_are_left_out_named_and_counted(kind, noise, tmp_path, capsys):
    data = encoded(noise, kind)
    broken = [data[: len(data) // 2], b"", b"GIF89a", data[:4] + b"\0" * 40, None]
    write_parquet(tmp_path / "cifar10" / "train.parquet", [data, *broken, data], range(7), "img")
    read = load_images("cifar10", size=32)
    assert (len(read), read.labels.tolist()) == (2, [0, 6])
    assert torch.equal(read.pixels[0], read.pixels[1])
    said = capsys.readouterr().err
    assert said.startswith("dyndiff: left out 5 of 7 images: ")
    assert said.count("\n") == 1
    assert all(f"row {row}" in said for row in range(1, 6)) and "row 6" not in said


def test_random_damage_is_left_out_or_harmless(noise, tmp_path):
    """Whatever a decoder makes of it."""
    draw = random.Random(0)
    damaged = []
    for kind in ("png", "jpeg", "gif", "webp") * 25:
        data = bytearray(encoded(noise, kind))
        for _ in range(draw.choice([1, 4, 16])):
            data[draw.randrange(len(data))] = draw.randrange(256)
        damaged.append(bytes(data[: draw.choice([None, draw.randrange(len(data))])]))
    write_parquet(tmp_path / "mine.parquet", [*damaged, encoded(noise)], image="image")
    assert 1 <= len(load_images("mine.parquet", size=32)) <= 101


def test_nothing_but_damage_is_an_error(tmp_path):
    write_parquet(tmp_path / "cifar10" / "train.parquet", [b"no image"] * 12, [0] * 12, "img")
    with pytest.raises(ValueError, match="none of 12 images can be decoded: .*row 0: not an image.*; and 2 more$"):
        load_images("cifar10", size=6)


def test_one_image_at_a_time_is_in_memory():
    from dyndiff.decoding import decode_all
    from dyndiff.parquet import Encoded
    from dyndiff.sources import Source

    given, taken = [], []

    def images():
        for number in range(20):
            assert len(taken) == number
            given.append(number)
            yield Encoded(f"image {number}", encoded(picture(number)), 0)

    source = Source(folder=None, files=(), encoded=images, count=20)
    decode_all(images(), source, "RGB", 6, taken.append)
    assert len(given) == len(taken) == 20


def parquet_with(**columns):
    import pyarrow

    return pyarrow.table(columns)


@pytest.mark.parametrize(("table", "message"), [
    ({"pixels": [b"x"], "label": [0]}, "has no column 'img': it has pixels, label"),
    ({"img": [b"x"], "class": [0]}, "has no column 'label': it has img, class"),
    ({"img": ["x"], "label": [0]}, "column 'img' of .* must hold encoded images, not string"),
    ({"img": [b"x"], "label": ["cat"]}, "column 'label' of .* must hold integers, not string"),
])  # fmt: skip
def test_wrong_columns_are_named(table, message, tmp_path):
    from pyarrow import parquet

    (tmp_path / "cifar10").mkdir()
    parquet.write_table(parquet_with(**table), tmp_path / "cifar10" / "train.parquet")
    with pytest.raises(ValueError, match=message):
        load_images("cifar10", size=6)
    parquet.write_table(parquet_with(one=[1], two=["b"]), tmp_path / "mine.parquet")
    with pytest.raises(ValueError, match="'mine.parquet' has no column of encoded images: it has one, two"):
        load_images("mine.parquet", size=6)


@pytest.mark.parametrize("label", [-1, 10, None])
def test_labels_must_be_of_the_set(label, tmp_path):
    write_parquet(tmp_path / "cifar10" / "train.parquet", [encoded(picture(0))] * 2, [9, label], "img")
    with pytest.raises(ValueError, match=rf"row 1 has the label {label}; it must lie in 0 .. 9"):
        load_images("cifar10", size=6)


def test_files_that_are_not_parquet_or_cut_short_are_named(tmp_path):
    path = tmp_path / "cifar10" / "train.parquet"
    images = [encoded(picture(number, 32)) for number in range(300)]
    write_parquet(path, images, [0] * 300, "img", row_group_size=100, compression="none")
    whole = path.read_bytes()
    middle = bytearray(whole)
    middle[len(whole) // 2 - 3000 : len(whole) // 2 + 3000] = bytes(6000)
    for damaged in (b"", b"PAR1", whole[:-9], whole[: len(whole) // 2], whole[:-4] + b"PAR2"):
        path.write_bytes(damaged)
        with pytest.raises(
            ValueError, match=r"cifar10/train.parquet' can't be read as parquet \(cut short, or another"
        ):
            load_images("cifar10", size=6)
    path.write_bytes(middle)  # a page's header or some images, as it happens
    try:
        assert len(load_images("cifar10", size=6)) < 300
    except ValueError as error:
        assert "can't be read as parquet" in str(error)


def test_what_is_not_installed_is_said(tmp_path, monkeypatch):
    write_parquet(tmp_path / "cifar10" / "train.parquet", [encoded(picture(0))], [0], "img")
    with monkeypatch.context() as patch:
        patch.setitem(__import__("sys").modules, "PIL", None)
        with pytest.raises(ValueError, match=r"needs pillow: pip install 'dyndiff\[data\]'"):
            load_images("cifar10", size=6)
    with monkeypatch.context() as patch:
        patch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
        with pytest.raises(ValueError, match=r"needs pyarrow: pip install 'dyndiff\[data\]'"):
            load_images("cifar10", size=6)
