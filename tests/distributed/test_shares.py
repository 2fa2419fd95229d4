"""Parts that several processes do together give what one gives, to the bit, whatever their number."""

import threading
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from clusterucb.errors import ConfigError, LostError
from clusterucb.features.kmeans import spherical_kmeans
from clusterucb.features.store import FeatureStore, FeatureWriter
from clusterucb.runtime.processes import ALONE, World, joined, leads

SIZES = (2, 3, 4)


@dataclass(frozen=True)
class Thread(World):
    """A world whose processes are threads of this one; they exchange values over a table."""

    table: list = None
    barrier: threading.Barrier = None

    def gather(self, value):
        self.table[self.rank] = value
        self.barrier.wait(60)
        found = deepcopy(self.table)  # as what comes from another process is
        self.barrier.wait(60)
        return found

    def total(self, numbers):
        found = self.gather(numbers.clone())
        in_odd_order = torch.stack(found[::-1]).sum(0)  # ranks come in no order
        return numbers.copy_(in_odd_order)

    def lead(self, act):
        return self.gather(act() if self.leads else None)[0]


def together(size, function):
    """What `function(world)` returns in each of `size` threads."""
    world = Thread(size=size, table=[None] * size, barrier=threading.Barrier(size))

    def run(rank):
        try:
            return function(replace(world, rank=rank))
        except BaseException:
            world.barrier.abort()
            raise

    with ThreadPoolExecutor(size) as threads:
        return list(threads.map(run, range(size)))


def directions(n, d, seed=0):
    x = np.random.default_rng(seed).normal(size=(n, d))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16)


@pytest.mark.whole
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("k", "centre"), [(7, False), (60, False), (7, True)])
def test_kmeans_finds_the_same_clusters_to_the_bit(size, k, centre):
    """60 clusters of rows that are often copies: some are empty, and move to rows of any process."""
    features = np.concatenate([directions(500, 16), np.repeat(directions(20, 16, 1), 30, axis=0)])
    kmeans = partial(spherical_kmeans, features, k, block=16, centre=centre)
    one = kmeans()
    for found in together(size, lambda world: kmeans(world=world)):
        assert (found.labels == one.labels).all()
        assert (found.centroids == one.centroids).all()
        assert found.history == one.history


def test_each_process_reads_its_own_rows_in_kmeans():
    features = directions(1000, 16)

    class Store:
        shape = features.shape

        def __init__(self):
            self.read = []

        def __len__(self):
            return len(features)

        def __getitem__(self, rows):
            if rows.stop - rows.start > 1:  # not the start of one centroid
                self.read += range(rows.start, rows.stop)
            return features[rows]

    stores = [Store() for _ in range(4)]
    together(4, lambda world: spherical_kmeans(stores[world.rank], 5, block=16, iterations=0, world=world))
    assert sorted(row for store in stores for row in store.read) == list(range(1000))
    assert all(240 <= len(store.read) <= 260 for store in stores)


def test_a_store_that_some_processes_began_is_finished_by_another_number_of_them(tmp_path):
    features, losses = directions(60, 8), np.arange(60, dtype=np.float64)

    def write(world, rows, finish=False):
        with FeatureWriter(tmp_path, 60, 8, {"model": "m"}, world=world) as writer:
            missing = rows[~writer.done[rows]]
            for part in np.array_split(missing, world.size)[world.rank :: world.size]:
                writer.write(part, features[part], losses[part])
            if finish:
                writer.finish({})
            return len(missing)

    together(3, lambda world: write(world, np.arange(0, 60, 2)))
    assert together(2, lambda world: write(world, np.arange(45))) == [22, 22]
    assert together(4, lambda world: write(world, np.arange(60), finish=True)) == [8] * 4
    assert (np.asarray(FeatureStore(tmp_path).features) == features).all()
    assert (FeatureStore(tmp_path).losses == losses).all()


def test_without_the_variables_of_torchrun_there_is_one_process():
    with joined({}) as world:
        assert world is ALONE
    with joined({"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "x", "MASTER_PORT": "1"}) as world:
        assert world is ALONE
    with joined({"WORLD_SIZE": "8"}) as world:  # a cluster's own, which says nothing of how to meet
        assert world is ALONE
    ALONE.check_complete()
    assert leads({})
    assert not leads({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "x", "MASTER_PORT": "1"})


def test_a_world_of_one_is_refused_where_torch_knows_of_several_processes(monkeypatch):
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 4)
    with pytest.raises(
        ConfigError, match=r"4 processes, of which .* give Reselection\(\.\.\., world=world\)"
    ):
        ALONE.check_complete()


@pytest.mark.parametrize(
    ("visible", "others", "enough"),
    [(2, "gpu 0", True), (1, "another", True), (1, "gpu 0", False), (2, "gpu 1", False)],
    ids=["two are seen", "each sees its own", "both see the same", "both take the second"],
)
def test_each_process_needs_a_gpu_of_its_own_however_many_it_sees(visible, others, enough, monkeypatch):
    class Second(World):
        def gather(self, value):
            return [(value[0], others), value]

    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    named = lambda index: SimpleNamespace(uuid=f"gpu {index}")  # noqa: E731
    monkeypatch.setattr(torch.cuda, "get_device_properties", named)
    second = Second(rank=1, size=2)
    second.check_device("cpu")
    if enough:
        second.check_device("cuda")
    else:
        with pytest.raises(
            ConfigError, match="2 processes have 1 GPUs between them; start at most one for each"
        ):
            second.check_device("auto")


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ("[gloo/transport/tcp/pair.cc] Connection closed by peer", LostError),
        ("NCCL error: unhandled cuda error: out of memory", RuntimeError),
        ("No backend type associated with device type cpu", RuntimeError),
    ],
)
def test_only_what_tells_of_another_process_is_told_as_one_that_is_lost(said, error, monkeypatch):
    def meet(*_values, **_group):
        raise RuntimeError(said)

    monkeypatch.setattr(World, "_lost", lambda _world: "rank 1 does not answer")
    monkeypatch.setattr(torch.distributed, "all_reduce", meet)
    with pytest.raises(error) as found:
        World(size=2).total(torch.ones(1))
    assert type(found.value) is error
