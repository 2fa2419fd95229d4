"""Features of drawn rows on disk."""

import numpy as np
import pytest

from clusterucb.features.drawn import DrawnFeatures, DrawnWriter


def features(rows, dim=6):
    return (np.asarray(rows)[:, None] * 10 + np.arange(dim)).astype(np.float16)


def read(folder):
    blocks = list(DrawnFeatures(folder).blocks(block=3))
    return {
        int(row): feature.tolist() for rows, found in blocks for row, feature in zip(rows, found, strict=True)
    }


def write(folder, *batches):
    with DrawnWriter(folder, 6) as writer:
        for rows in batches:
            writer.add(np.array(rows), features(rows))


def test_what_is_written_in_any_number_of_attempts_is_read(tmp_path):
    write(tmp_path, [4, 1], [7])
    write(tmp_path, [2, 3, 9, 8])
    assert read(tmp_path) == {row: features([row])[0].tolist() for row in (4, 1, 7, 2, 3, 9, 8)}


def test_each_process_has_files_of_its_own(tmp_path):
    for rank, rows in enumerate(([4, 1], [7], [])):
        with DrawnWriter(tmp_path, 6, rank) as writer:
            writer.add(np.array(rows, np.int64), features(np.array(rows, np.int64)))
    assert read(tmp_path) == {row: features([row])[0].tolist() for row in (4, 1, 7)}


def test_a_folder_without_drawn_rows_has_none(tmp_path):
    assert read(tmp_path) == {}
    write(tmp_path)
    assert read(tmp_path) == {}


@pytest.mark.parametrize("file", ["drawn.f16", "drawn.i64"])
@pytest.mark.parametrize("torn", [1, 5, 9])
def test_a_row_torn_by_a_kill_is_dropped_and_written_again(tmp_path, file, torn):
    write(tmp_path, [4, 1], [7, 5])
    path = tmp_path / file
    path.write_bytes(path.read_bytes()[:-torn])
    write(tmp_path, [7, 5])
    assert read(tmp_path) == {row: features([row])[0].tolist() for row in (4, 1, 7, 5)}
