"""The memory of k-means and of scoring does not grow with the store that they read."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from clusterucb.features.store import FeatureWriter

DIM, ROWS = 8192, 1500
MIB = 2**20
STATUS = Path("/proc/self/status")

PEAKS = """
import sys
from pathlib import Path
import numpy as np
from clusterucb.features.kmeans import spherical_kmeans
from clusterucb.features.influence import stored_influence
from clusterucb.features.store import FeatureStore
for folder in sys.argv[1:]:
    features = FeatureStore(Path(folder)).features
    spherical_kmeans(features, 3, iterations=1)
    stored_influence(features, np.ones((2, features.shape[1]), np.float32))
    print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def write_store(folder, rows):
    block = np.random.default_rng(0).normal(size=(500, DIM)).astype(np.float16)
    with FeatureWriter(folder, rows, DIM, {}) as writer:
        for start in range(0, rows, 500):
            writer.write(np.arange(start, start + 500), np.roll(block, start, axis=1), np.zeros(500))
        writer.finish({})
    return folder


@pytest.mark.skipif(not STATUS.exists(), reason="the peak is read from /proc: Linux only")
def test_four_times_the_rows_need_no_more_memory(tmp_path):
    folders = [write_store(tmp_path / str(times), times * ROWS) for times in (1, 4)]
    assert 3 * ROWS * DIM * 2 > 70 * MIB  # more on the disk
    command = [sys.executable, "-c", PEAKS, *folders]  # a process of its own
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    before, after = (int(kilobytes) * 1024 for kilobytes in done.stdout.split())
    assert after - before < 12 * MIB
