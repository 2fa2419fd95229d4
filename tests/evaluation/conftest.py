"""Benchmarks that are small: official files of a few questions, short answers, few shots."""

import pytest
from benchmark_helpers import short, write_data


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("official"))


@pytest.fixture
def small(monkeypatch):
    short(monkeypatch)
