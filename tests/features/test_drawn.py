"""Features of drawn rows on disk."""

import numpy as np
import pytest

from clusterucb.features.drawn import DrawnFeatures, DrawnWriter


def features(rows):
    return (np.array(rows, np.int64)[:, None] * 10 + np.arange(6)).astype(np.float16)


def read(folder):
    """The rows that are there, each with its features."""
    seen = set()
    for rows, found in DrawnFeatures(folder).blocks(block=3):
        assert found.tolist() == features(rows).tolist()
        seen |= set(rows.tolist())
    return seen


def write(folder, *batches, rank=0):
    with DrawnWriter(folder, 6, rank) as writer:
        for rows in batches:
            writer.add(np.array(rows, np.int64), features(rows))


def test_what_is_written_in_any_number_of_attempts_is_read(tmp_path):
    write(tmp_path, [4, 1], [7])
    write(tmp_path, [2, 3, 9, 8])
    assert read(tmp_path) == {4, 1, 7, 2, 3, 9, 8}


def test_each_process_has_files_of_its_own(tmp_path):
    for rank, rows in enumerate(([4, 1], [7], [])):
        write(tmp_path, rows, rank=rank)
    assert read(tmp_path) == {4, 1, 7}


def test_a_folder_without_drawn_rows_has_none(tmp_path):
    assert read(tmp_path) == set()
    write(tmp_path)
    assert read(tmp_path) == set()


@pytest.mark.parametrize("file", ["drawn.f16", "drawn.i64"])
@pytest.mark.parametrize("torn", [1, 5, 9])
def test_a_row_torn_by_a_kill_is_dropped_and_written_again(tmp_path, file, torn):
    write(tmp_path, [4, 1], [7, 5])
    path = tmp_path / file
    path.write_bytes(path.read_bytes()[:-torn])
    write(tmp_path, [7, 5])
    assert read(tmp_path) == {4, 1, 7, 5}
