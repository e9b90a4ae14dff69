"""Arrays that are made once, and downloads: the same bytes as the files, whole or not there."""

import hashlib
import http.server
import json
import multiprocessing
import os
import re
import resource
import shutil
import threading
import time
from pathlib import Path

import pytest
import torch
from imagefiles import encoded, picture, write_parquet

from dyndiff import hub, load_images, prefetch
from dyndiff.cli import main
from dyndiff.files import newest_checkpoint
from dyndiff.prefetch import array_folder

pytest.importorskip("pyarrow")

PNGS = [encoded(picture(number, 28, "L")) for number in range(20)]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    """Nothing of the machine's own is found, and nothing is asked of a network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DYNDIFF_DATA", str(tmp_path))
    monkeypatch.setattr(hub, "download", lambda name, split, folder: (_ for _ in ()).throw(ValueError("no network")))


@pytest.fixture
def mnist(tmp_path):
    """Twenty pictures to train on and five to test on."""
    write_parquet(tmp_path / "mnist" / "train.parquet", PNGS, [number % 10 for number in range(20)])
    write_parquet(tmp_path / "mnist" / "test.parquet", PNGS[:5], range(5))
    return tmp_path / "mnist"


def same(one, other):
    return torch.equal(one.pixels, other.pixels) and torch.equal(one.labels, other.labels) and (
        (one.classes, one.flips) == (other.classes, other.flips)
    )  # fmt: skip


@pytest.mark.parametrize("size", [28, 16])
def test_an_array_is_what_the_files_give(size, mnist):
    decoded = load_images("mnist", size=size)
    record = prefetch.prefetch("mnist", "train", size)
    mapped = load_images("mnist", size=size)
    assert same(mapped, decoded)
    assert (mnist / f"train-{size}" / "pixels.uint8").read_bytes() == decoded.pixels.numpy().tobytes()
    assert record["shape"] == [20, 1, size, size]
    assert record["source"]["sha256"] == hashlib.sha256((mnist / "train.parquet").read_bytes()).hexdigest()
    assert record["sha256"]["pixels.uint8"] == hashlib.sha256(decoded.pixels.numpy().tobytes()).hexdigest()
    batch = torch.tensor([3, 19, 3])
    assert torch.equal(mapped.pixels[batch], decoded.pixels[batch])
    assert (mapped.pixels.dtype, mapped.labels.dtype) == (torch.uint8, torch.int64)


def test_training_on_an_array_is_training_on_its_files(mnist):
    train = ["train", "unet-digits", "--data", "mnist", "--steps", "2", "--batch-size", "4", "--out"]
    main([*train, "files"])
    main(["data", "prefetch", "mnist", "--size", "16"])
    main([*train, "array"])
    one, other = (newest_checkpoint(out) / "model.safetensors" for out in ("files", "array"))
    assert one.read_bytes() == other.read_bytes()


def test_what_is_done_to_a_mapped_tensor_does_not_reach_the_disk(mnist):
    prefetch.prefetch("mnist", "train", 28)
    before = (mnist / "train-28" / "pixels.uint8").read_bytes()
    load_images("mnist", size=28).pixels.zero_()
    assert (mnist / "train-28" / "pixels.uint8").read_bytes() == before


def test_without_its_files_an_array_is_enough(mnist):
    decoded = load_images("mnist", size=28)
    prefetch.prefetch("mnist", "train", 28)
    (mnist / "train.parquet").unlink()
    assert same(load_images("mnist", size=28), decoded)
    prefetch.prefetch("mnist", "train", 28)
    with pytest.raises(ValueError, match="doesn't hold the train files of 'mnist', and no network"):
        load_images("mnist", size=16)


@pytest.fixture
def decodings(monkeypatch):
    """Counts how often a split is decoded."""
    calls = []

    def counted(*args):
        calls.append(args)
        return decode_all(*args)

    decode_all = prefetch.decode_all
    monkeypatch.setattr(prefetch, "decode_all", counted)
    return calls


def test_an_array_is_made_once_and_again_when_its_files_change(mnist, decodings):
    for _ in range(2):
        prefetch.prefetch("mnist", "train", 28)
        assert len(load_images("mnist", size=28)) == 20
        assert len(decodings) == 1
    write_parquet(mnist / "train.parquet", PNGS[:7], [0] * 7)
    assert len(load_images("mnist", size=28)) == 7  # from the files: the array is of others
    assert prefetch.prefetch("mnist", "train", 28)["shape"][0] == 7
    assert len(decodings) == 3
    load_images("mnist", size=28)
    assert len(decodings) == 3


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["pixels.uint8", "labels.int64", "images.json"])
@pytest.mark.parametrize("damage", [cut, flip, Path.unlink], ids=["cut", "flipped", "removed"])
def test_a_damaged_array_is_made_again(name, damage, mnist, decodings):
    before = prefetch.prefetch("mnist", "train", 28)
    damage(mnist / "train-28" / name)
    assert len(load_images("mnist", size=28)) == 20  # a flipped bit is not looked for here
    prefetch.prefetch("mnist", "train", 28)
    (mnist / "train.parquet").unlink()
    assert prefetch.prefetch("mnist", "train", 28)["sha256"] == before["sha256"]
    assert torch.equal(load_images("mnist", size=28).pixels[:, 0, 0, 0], torch.arange(20).mul(7).to(torch.uint8))


def test_an_array_of_a_folder_of_images(tmp_path, decodings):
    """Under a name of its own, and made again when an image is added or moved to another class."""
    for name in ("a/1.png", "a/2.png", "b/3.png"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        picture(int(name[2])).save(tmp_path / "photos" / name)
    decoded = load_images("photos", size=6)
    prefetch.prefetch("photos", "train", 6)
    assert len(decodings) == 2
    assert same(load_images("photos", size=6), decoded)
    assert same(load_images(str(tmp_path / "photos"), size=6), decoded)
    assert len(decodings) == 2
    os.replace(tmp_path / "photos/a/2.png", tmp_path / "photos/b/2.png")
    assert load_images("photos", size=6).labels.tolist() == [0, 1, 1]
    prefetch.prefetch("photos", "train", 6)
    os.rename(tmp_path / "photos/b", tmp_path / "photos/0")
    assert load_images("photos", size=6).labels.tolist() == [0, 0, 1]
    assert array_folder("photos", "train", 6) != array_folder("elsewhere/photos", "train", 6)
    assert array_folder("photos", "train", 6, tmp_path / "arrays").parts[-3] == "arrays"


def test_a_class_of_the_other_split_renumbers_an_arrays_labels(tmp_path):
    for name in ("train/cats/1.png", "test/cats/2.png"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True)
        picture(1).save(tmp_path / "photos" / name)
    prefetch.prefetch("photos", "train", 6)
    os.rename(tmp_path / "photos/test/cats", tmp_path / "photos/test/ants")
    images = load_images("photos", size=6)
    assert (images.labels.tolist(), images.classes) == ([1], ("ants", "cats"))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"shape": 3}', '{"shape": [20, 1, 28, 28], "classes": 3}'])
def test_a_record_of_another_kind_is_no_array(text, mnist):
    prefetch.prefetch("mnist", "train", 28)
    (mnist / "train-28" / "images.json").write_text(text)
    assert len(load_images("mnist", size=28)) == 20
    assert len(prefetch.prefetch("mnist", "train", 28)["classes"]) == 10


def test_what_was_left_out_is_recorded_and_said(mnist, capsys):
    write_parquet(mnist / "train.parquet", [*PNGS[:4], b"broken", *PNGS[5:8]], range(8))
    main(["data", "prefetch", "mnist"])
    out, err = capsys.readouterr()
    assert re.fullmatch(r"dyndiff: left out 1 of 8 images: '.*train.parquet', row 4: not an image\n", err)
    assert out.splitlines()[0].startswith("mnist, train: 7 images of 1x28x28, 1 left out, in ")
    main(["data", "prefetch", "mnist"])
    assert capsys.readouterr().out.splitlines()[0].startswith("mnist, train: 7 images of 1x28x28, 1 left out, in ")
    assert json.loads((mnist / "train-28" / "images.json").read_text())["left_out"] == [err[:-1].split(": ", 2)[2]]


def _make_an_array(folder, results):
    os.environ["DYNDIFF_DATA"] = str(folder)
    calls, decode_all = [], prefetch.decode_all
    prefetch.decode_all = lambda *args: calls.append(1) or time.sleep(0.3) or decode_all(*args)
    record = prefetch.prefetch("mnist", "train", 28)
    results.put((len(calls), record["shape"]))


def test_of_several_processes_one_makes_an_array(mnist, tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=_make_an_array, args=(tmp_path, results)) for _ in range(3)]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(calls for calls, _ in found) == [0, 0, 1]


def refused(capsys, *args):
    """The one line that a command fails with."""
    with pytest.raises(SystemExit) as stopped:
        main(list(args))
    out, err = capsys.readouterr()
    assert (stopped.value.code, out) == (2, "")
    assert re.fullmatch(r"dyndiff: [^\n]+\n", err), err
    return err


@pytest.mark.parametrize(("command", "message"), [
    ("data prefetch", "name what to prefetch"),
    ("data prefetch nosuch", "unknown data set 'nosuch'; choose from digits, shapes, mnist"),
    ("data prefetch mnist --size 3", "at least 4 pixels a side, got 3"),
    ("data prefetch mnist", "doesn't hold the train files of 'mnist', and no network"),
    ("data prefetch .", "give --size"),
    ("data prefetch . --size 8", "'.' holds no image"),
    ("data prefetch file --size 8", "'file' must be a folder of images or a parquet file"),
    ("data prefetch mnist --data-dir file", "cannot write to the folder 'file/mnist'"),
    ("train unet-digits --data file --out new", "'file' must be a folder of images or a parquet file"),
])  # fmt: skip
def test_a_mistake_is_one_line(command, message, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert message in refused(capsys, *command.split())
    assert (tmp_path / "file").read_text() == "mine"
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_one_line_and_its_arrays_are_read(mnist, capsys):
    prefetch.prefetch("mnist", "train", 28)
    mnist.chmod(0o555)
    try:
        assert "cannot write to the folder" in refused(capsys, "data", "prefetch", "mnist")
        assert len(load_images("mnist", size=28)) == 20
    finally:
        mnist.chmod(0o755)


def test_a_full_disk_is_one_line_and_leaves_nothing(mnist, capsys):
    """A limit on the size of files stands for the disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        error = refused(capsys, "data", "prefetch", "mnist")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "can't be made: [Errno 27] File too large" in error
    assert sorted(path.name for path in mnist.iterdir()) == [".lock", "test.parquet", "train.parquet"]


def test_stopped_in_the_middle_nothing_is_left(mnist, monkeypatch):
    def stop(items, source, mode, size, take):
        take(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(prefetch, "decode_all", stop)
    with pytest.raises(KeyboardInterrupt):
        prefetch.prefetch("mnist", "train", 28)
    assert sorted(path.name for path in mnist.iterdir()) == [".lock", "test.parquet", "train.parquet"]


def test_what_a_killed_process_left_is_removed(mnist):
    (mnist / ".train-28-half" / "new").mkdir(parents=True)
    (mnist / ".train-28-half" / "new" / "pixels.uint8").write_bytes(b"half")
    prefetch.prefetch("mnist", "train", 28)
    assert sorted(path.name for path in mnist.iterdir()) == [".lock", "test.parquet", "train-28", "train.parquet"]


def test_the_list_names_every_data_set(capsys):
    main(["data", "list"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["name", "digits", "shapes", *hub.HUB, "PATH"]
    assert lines[1].split()[1:3] == ["1,297", "500"]
    main(["data", "prefetch", "digits"])
    assert "comes with the package" in capsys.readouterr().out


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as a download asks for: what a repository holds, and parts of its files.

    `blocks` parts are sent whole; then the connection breaks in the middle of every one.
    """

    files: dict[str, bytes]
    blocks: float
    ranges: list[tuple[str, int]]

    def do_GET(self):
        path = self.path.split("?")[0]
        if "/resolve/" in path:
            self.send_part(path.split("/resolve/main/")[1])
        elif "/tree/" in path:
            below = path.split("/tree/main")[1].strip("/")
            self.send_json([entry for entry in self.entries() if str(Path(entry["path"]).parent) == (below or ".")])
        elif path.startswith("/api/datasets/"):
            self.send_json({"id": path.removeprefix("/api/datasets/"), "sha": "0" * 40})
        else:
            self.send_error(404)

    def entries(self):
        for folder in {str(Path(name).parent) for name in self.files}:
            yield {"type": "directory", "path": folder, "oid": "0"}
        for name, data in self.files.items():
            checksum = hashlib.sha256(data).hexdigest()
            lfs = {"oid": checksum, "size": len(data), "pointerSize": 100}
            yield {"type": "file", "path": name, "size": len(data), "oid": checksum[:40], "lfs": lfs}

    def send_part(self, name):
        first, last = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"]).groups())
        part = type(self).files[name][first : last + 1]
        type(self).ranges.append((name, first))
        self.send_response(206)
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        type(self).blocks -= 1
        self.wfile.write(part if self.blocks >= 0 else part[: len(part) // 2])
        self.close_connection = True

    def send_json(self, value):
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def served(mnist, monkeypatch):
    """The pictures on a hub of our own, which sends a kilobyte at a time, and not in the folder of data sets."""
    import huggingface_hub

    Hub.files = {f"mnist/{split}-00000-of-00001.parquet": (mnist / f"{split}.parquet").read_bytes()
                 for split in ("train", "test")}  # fmt: skip
    Hub.blocks, Hub.ranges = float("inf"), []
    shutil.rmtree(mnist)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    filesystem = huggingface_hub.HfFileSystem
    monkeypatch.undo()
    monkeypatch.chdir(mnist.parent)
    monkeypatch.setenv("DYNDIFF_DATA", str(mnist.parent))
    monkeypatch.setattr(huggingface_hub, "HfFileSystem", lambda: filesystem(endpoint=address, skip_instance_cache=True))
    monkeypatch.setattr(hub, "BLOCK", 512)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    yield mnist
    server.shutdown()


def test_a_named_data_set_is_downloaded_once_and_then_needs_no_hub(served, decodings):
    images = load_images("mnist", size=28)
    assert torch.equal(images.pixels[:, 0, 0, 0], torch.arange(20).mul(7).to(torch.uint8))
    assert images.labels.tolist() == [*range(10), *range(10)]
    asked = len(Hub.ranges)
    assert (served / "mnist/train-00000-of-00001.parquet").read_bytes() == Hub.files[
        "mnist/train-00000-of-00001.parquet"
    ]
    assert same(load_images("mnist", size=28), images)
    assert load_images("mnist", size=16).pixels.shape[-1] == 16  # from the files that came
    assert len(Hub.ranges) == asked


def test_a_download_that_breaks_off_is_gone_on_with(served, capsys):
    """What came is kept; nothing of it is taken for a data set; no byte of it is asked for again."""
    Hub.blocks = 2
    error = refused(capsys, "data", "prefetch", "mnist")
    assert "doesn't hold the train files of 'mnist', and 'ylecun/mnist' can't be downloaded from the hub: " in error
    parts = [path for path in served.rglob("*") if path.is_file() and path.name != ".lock"]
    assert [path.name for path in parts] == ["train-00000-of-00001.parquet.part"]
    come = parts[0].stat().st_size
    assert 0 < come < len(Hub.files["mnist/train-00000-of-00001.parquet"])
    Hub.blocks, Hub.ranges = float("inf"), []
    main(["data", "prefetch", "mnist"])
    assert min(first for name, first in Hub.ranges if "train" in name) == come
    assert len(load_images("mnist", size=28)) == 20
    assert list(served.rglob("*.part")) == []


def test_what_comes_damaged_is_fetched_anew(served):
    name = "mnist/train-00000-of-00001.parquet"
    (served / "mnist").mkdir(parents=True)
    (served / f"{name}.part").write_bytes(b"of another revision")
    with pytest.raises(ValueError, match="came with a wrong checksum; the next call fetches it anew"):
        load_images("mnist", size=28)
    assert len(load_images("mnist", size=28)) == 20


def test_some_files_of_a_split_are_not_taken_for_all(mnist):
    os.replace(mnist / "train.parquet", mnist / "train-00000-of-00003.parquet")
    with pytest.raises(ValueError, match="doesn't hold the train files of 'mnist', and no network"):
        load_images("mnist", size=28)
    with pytest.raises(ValueError, match="holds 1 of the 3 files of 'train'"):
        load_images(str(mnist), size=28)


def test_a_hub_without_such_files_is_said(served):
    Hub.files = {"README.md": b"moved"}
    with pytest.raises(
        ValueError, match=r"can't be downloaded from the hub: no datasets/ylecun/mnist/mnist/train-\*.parquet is"
    ):
        load_images("mnist", size=28)
