"""What holds for every selection, whoever made it."""

import numpy as np


def check_consistent(found, told, clusters, scores):
    """No row twice, every number that of its row; `told`, if anything is, is each draw in its order."""
    assert found.spent == len(set(found.drawn.tolist()))
    assert found.drawn_scores.tolist() == scores[found.drawn].tolist()
    assert found.drawn_clusters.tolist() == clusters[found.drawn].tolist()
    assert (np.diff(found.rows) > 0).all()
    assert found.clusters.tolist() == clusters[found.rows].tolist()
    computed = np.isin(found.rows, found.drawn)
    assert found.scores[computed].tolist() == scores[found.rows[computed]].tolist()
    assert found.threshold == found.scores.min()
    if not told:
        return
    assert [draw.step for draw in told] == list(range(len(told)))
    assert sorted(row for draw in told for row in draw.rows) == sorted(found.drawn)
    assert all(draw.scores.tolist() == scores[draw.rows].tolist() for draw in told)
    assert all((clusters[draw.rows] == draw.arm).all() for draw in told)
    assert sum(len(draw.rows) for draw in told if draw.cold) == found.cold
