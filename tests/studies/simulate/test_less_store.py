"""LESS's gradient files: what they hold, in the layout that LESS writes, and what is refused."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clusterucb.errors import ConfigError, InputError
from clusterucb.studies.simulate.less_store import LessFeatures, less_directions, less_file


def gradients(n, d=12, seed=0, scale=3.0):
    return torch.from_numpy(np.random.default_rng(seed).normal(0, scale, (n, d)))


def write(path, tensor, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(tensor, path, **more)
    return path


def unit(rows):
    rows = rows.double().numpy()
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Three files of 5, 1 and 9 rows, and their rows one after the other, normalised."""
    folder, parts = tmp_path_factory.mktemp("less"), [gradients(n, seed=n).half() for n in (5, 1, 9)]
    files = [write(folder / f"{i}.pt", part) for i, part in enumerate(parts)]
    return files, unit(torch.cat(parts))


@given(start=st.integers(-20, 20), stop=st.integers(-20, 20))
def test_several_files_are_one_pool_of_unit_rows(three, start, stop):
    files, rows = three
    features = LessFeatures(files)
    assert (features.shape, len(features)) == ((15, 12), 15)
    found = features[start:stop]
    assert found.dtype == np.float32
    assert found.shape == rows[start:stop].shape
    assert np.allclose(found, rows[start:stop], atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("newer", [True, False])
def test_every_floating_type_and_both_file_formats_are_read(tmp_path, dtype, newer):
    rows = gradients(6).to(dtype)
    file = write(tmp_path / "all_orig.pt", rows, _use_new_zipfile_serialization=newer)
    assert np.allclose(LessFeatures([file])[:], unit(rows), atol=1e-6)


def test_directions_are_means_over_consecutive_equal_runs(tmp_path):
    rows = gradients(12).half()
    file = write(tmp_path / "all_orig.pt", rows)
    assert np.allclose(less_directions(file, 1), unit(rows).mean(0, keepdims=True), atol=1e-6)
    expected = [unit(rows)[3 * s : 3 * s + 3].mean(0) for s in range(4)]
    assert np.allclose(less_directions(file, 4), expected, atol=1e-6)
    with pytest.raises(ConfigError, match="12 rows are not 5 subtasks of equal size; give --subtasks"):
        less_directions(file, 5)


def test_a_folder_stands_for_the_file_in_it_or_in_its_one_dimension(tmp_path):
    file = write(tmp_path / "dolly-ckpt105-adam/dim8192/all_orig.pt", gradients(2))
    run = tmp_path / "dolly-ckpt105-adam"
    assert less_file(file) == less_file(file.parent) == less_file(run) == file
    assert less_file(tmp_path) is None
    assert less_file(tmp_path / "none") is None
    write(run / "dim4096/all_orig.pt", gradients(2))
    with pytest.raises(ConfigError, match=r"several dimensions \(dim4096, dim8192\); name one"):
        less_file(run)


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def refused(file, said):
    with pytest.raises(InputError, match=f"^{file}: .*{said}") as caught:
        LessFeatures([file])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("how", ["torch", "legacy", "pickle"])
def test_a_pickle_that_would_run_code_is_refused_and_nothing_runs(tmp_path, how):
    file, witness = tmp_path / "all_orig.pt", tmp_path / "ran"
    if how == "pickle":
        file.write_bytes(pickle.dumps(Evil(witness)))
    else:
        write(file, [gradients(2), Evil(witness)], _use_new_zipfile_serialization=how == "torch")
    refused(file, "cannot be read as a tensor.*never loaded")
    assert not witness.exists()


@pytest.mark.parametrize("content", [b"", b"no tensor", b"PK\x03\x04 torn", b"\x80\x02]q\x00.", "cut"])
def test_a_file_that_is_no_tensor_is_one_line(tmp_path, content):
    file = write(tmp_path / "all_orig.pt", gradients(50))
    file.write_bytes(file.read_bytes()[:-2000] if content == "cut" else content)
    refused(file, "expected a ")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"a": torch.zeros(2)}, "holds a dict; expected a tensor"),
        (torch.zeros(3), r"torch.float32 and shape \(3,\); expected floating-point"),
        (torch.ones(3, 2, dtype=torch.int64), "torch.int64"),
        (torch.zeros(0, 4), r"shape \(0, 4\).*not empty"),
        (torch.eye(3).to_sparse(), "expected floating-point"),
        (torch.tensor([[1.0, 2], [0, 0], [0, 0]]), r"row 1, counted from 0, is all zero \(.*: 2\)"),
        (torch.tensor([[1.0, 2], [3, 4], [torch.nan, 0]]), "row 2, counted from 0, is not finite"),
        (torch.tensor([[torch.inf, 2]]), "row 0, counted from 0, is not finite"),
    ],
)
def test_what_is_no_gradient_is_named(tmp_path, content, said):
    refused(write(tmp_path / "all_orig.pt", content), said)


def test_files_of_different_dimensions_are_no_pool(tmp_path):
    files = [write(tmp_path / f"{d}.pt", gradients(2, d)) for d in (4, 5)]
    with pytest.raises(InputError, match=r"5\.pt: rows of 5 dimensions, but those of .*4\.pt have 4"):
        LessFeatures(files)


def test_only_runs_of_rows_are_read(three):
    with pytest.raises(IndexError, match="only runs"):
        LessFeatures(three[0])[::2]
