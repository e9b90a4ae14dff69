"""Files are whole or not there."""

import os
import re

import pytest
import torch

from dyndiff.files import (
    clear_unfinished,
    newest_checkpoint,
    output_folder,
    read_json,
    read_tensors,
    remove_folder,
    replacing,
    replacing_folder,
    write_json,
    write_tensors,
)


def contents(folder):
    """Every file under a folder, temporary ones included, and its text."""
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_replacing_puts_the_new_file_in_place(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert contents(tmp_path) == {"file.txt": "new"}


def test_replacing_keeps_the_old_file_on_an_exception(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert contents(tmp_path) == {"file.txt": "old"}
    assert os.listdir(tmp_path) == ["file.txt"]


def test_replacing_leaves_nothing_where_there_was_nothing(tmp_path):
    with pytest.raises(OSError, match="full"), replacing(tmp_path / "file.txt") as temporary:
        temporary.write_text("half")
        raise OSError("disk full")
    assert os.listdir(tmp_path) == []


def test_replacing_a_folder_replaces_all_of_it(tmp_path):
    folder = tmp_path / "images"
    for name in ("old", "new"):
        with replacing_folder(folder) as temporary:
            (temporary / name).write_text(name)
    assert contents(tmp_path) == {"images/new": "new"}
    assert os.listdir(tmp_path) == ["images"]
    (tmp_path / "plain").mkdir()
    assert folder.stat().st_mode == (tmp_path / "plain").stat().st_mode  # others may look in


def test_replacing_a_folder_keeps_the_old_one_on_an_exception(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "old").write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing_folder(tmp_path / "images") as temporary:
        (temporary / "half").write_text("half")
        raise KeyboardInterrupt
    assert contents(tmp_path) == {"images/old": "old"}
    assert os.listdir(tmp_path) == ["images"]


class Killed(BaseException):
    """Stands for kill -9: what tidies up is not called."""


def killed_while_replacing(path, monkeypatch, renames):
    """Replace a folder in the way of a process that is killed before its nth rename."""
    from dyndiff import files

    replace = os.replace

    def count(*args):
        nonlocal renames
        if renames == 0:
            raise Killed
        renames -= 1
        replace(*args)

    with monkeypatch.context() as patch:
        patch.setattr(files.tempfile.TemporaryDirectory, "cleanup", lambda self: self._finalizer.detach())
        patch.setattr(os, "replace", count)
        with pytest.raises(Killed), replacing_folder(path) as temporary:
            (temporary / "new").write_text("new")


@pytest.mark.parametrize("renames", [0, 1])
def test_what_a_killed_process_left_is_cleared(renames, tmp_path, monkeypatch):
    """Before the first rename the old folder is in its place; after it, it has to be put back."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "old").write_text("old")
    (tmp_path / ".mine").mkdir()
    killed_while_replacing(tmp_path / "images", monkeypatch, renames)
    assert len(os.listdir(tmp_path)) == 3 - renames
    clear_unfinished(tmp_path)
    assert contents(tmp_path) == {"images/old": "old"}
    assert sorted(os.listdir(tmp_path)) == [".mine", "images"]
    clear_unfinished(tmp_path / "nosuch")


def test_a_folder_is_removed(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "old").write_text("old")
    remove_folder(tmp_path / "images")
    assert os.listdir(tmp_path) == []


def test_output_folder_is_made_with_its_parents_and_left_empty(tmp_path):
    folder = output_folder(tmp_path / "a" / "b")
    assert folder.is_dir()
    assert list(folder.iterdir()) == []
    assert output_folder(str(folder)) == folder


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_output_folder_refuses_a_files_place(name, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match=re.escape(f"cannot write to the folder '{tmp_path / name}'")):
        output_folder(tmp_path / name)
    assert contents(tmp_path) == {"file": "mine"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_output_folder_refuses_what_may_not_be_written(tmp_path):
    tmp_path.chmod(0o555)
    for folder in (tmp_path, tmp_path / "new"):
        with pytest.raises(ValueError, match="Permission denied"):
            output_folder(folder)


def test_json_comes_back(tmp_path):
    write_json(tmp_path / "a.json", {"loss": [0.1, 0.2], "name": "é"})
    assert read_json(tmp_path / "a.json") == {"loss": [0.1, 0.2], "name": "é"}


def test_json_that_cannot_be_written_changes_nothing(tmp_path):
    write_json(tmp_path / "a.json", {"old": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"tensor": torch.ones(1)})
    assert read_json(tmp_path / "a.json") == {"old": 1}
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", "null", "3", "{'a': 1}", "\udcff", "[" * 100_000], ids=lambda text: repr(text)[:9]
)
def test_what_is_no_json_object_is_a_value_error_that_names_the_file(text, tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=re.escape(str(path))):
        read_json(path)


def test_tensors_come_back_bit_for_bit(tmp_path):
    """Whatever their layout and dtype, scalars and views included."""
    base = torch.randn(2, 4, 3, 3)
    tensors = {
        "channels_last": base.contiguous(memory_format=torch.channels_last),
        "view": base[:, ::2],
        "shared": base,
        "scalar": torch.tensor(3.0),
        "double": base.double(),
        "gradient": base.clone().requires_grad_(),
    }
    write_tensors(tmp_path / "a.safetensors", tensors)
    loaded = read_tensors(tmp_path / "a.safetensors")
    assert loaded.keys() == tensors.keys()
    assert all(
        torch.equal(loaded[name], value) and loaded[name].dtype == value.dtype for name, value in tensors.items()
    )


@pytest.mark.parametrize("bytes_", [None, b"", b"\x80\x04K\x01.", b"\xff" * 64])
def test_what_is_no_safetensors_is_a_value_error_that_names_the_file(bytes_, tmp_path):
    path = tmp_path / "a.safetensors"
    if bytes_ is not None:
        path.write_bytes(bytes_)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        read_tensors(path)


def test_newest_checkpoint_is_the_one_with_most_steps(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    assert newest_checkpoint(tmp_path / "nosuch") is None
    for step in (999_999, 1_000_000, 5):
        (tmp_path / f"step-{step:06d}").mkdir()
    assert newest_checkpoint(tmp_path).name == "step-1000000"
