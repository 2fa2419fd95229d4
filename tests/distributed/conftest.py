"""One server of ranks for all tests of several processes."""

from __future__ import annotations

import pytest
from ranks import Ranks


@pytest.fixture(scope="session")
def ranks(tmp_path_factory):
    """`ranks(arguments, processes=2)` runs a command as several processes."""
    ranks = Ranks(tmp_path_factory.mktemp("ranks"))
    with ranks.process:
        yield ranks
        ranks.process.stdin.close()
