"""What FSDP 2 shards over two or four processes: each row's gradient, moments, selections and whole runs."""

import numpy as np
import pytest
import sharded
from safetensors.numpy import load_file


def ended_well(found):
    assert [rank["status"] for rank in found] == [0] * len(found), found


@pytest.mark.parametrize("processes", [2, 4])
def test_each_rows_gradient_is_that_of_the_whole_model_to_the_bit(ranks, tmp_path, processes):
    """Though the processes' numbers of micro-batches differ, which all take part in."""
    ended_well(ranks([str(tmp_path / "found")], processes, main="sharded:features"))
    expected = sharded.computed(sharded.adapted())
    assert expected["batches"][0] % processes
    for rank in range(processes):
        found = load_file(tmp_path / f"found.{rank}")
        for name, array in expected.items():
            assert np.array_equal(found[name], array), name
