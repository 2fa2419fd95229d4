"""What stored features tell of rows before they are drawn."""

import numpy as np

from clusterucb.features.drawn import DrawnWriter
from clusterucb.features.influence import influence
from clusterucb.features.knowledge import Knowledge

rng = np.random.default_rng(0)


def unit(n, d):
    rows = rng.normal(size=(n, d))
    return (rows / np.linalg.norm(rows, axis=1)[:, None]).astype(np.float16)


def test_an_estimate_is_the_influence_on_the_directions_now_by_stored_or_newer_features(tmp_path):
    """The newest that were drawn in earlier rounds."""
    features, directions = unit(50, 32), unit(2, 32).astype(np.float32)
    expected, stored = influence(features, directions), Knowledge(features).at(directions)
    assert stored.estimate.tolist() == expected.tolist()
    assert not stored.age.any()
    newer = {1: ([3, 8], unit(2, 32)), 2: ([8, 20], unit(2, 32))}
    for number, (rows, found) in newer.items():
        (tmp_path / str(number)).mkdir()
        with DrawnWriter(tmp_path / str(number), 32) as writer:
            writer.add(np.array(rows), found)
    known = Knowledge(features).at(directions, [tmp_path / "1", tmp_path / "2", tmp_path / "3"])
    expected[[3, 8]] = influence(newer[1][1], directions)
    expected[[8, 20]] = influence(newer[2][1], directions)
    assert known.estimate.tolist() == expected.tolist()
    ages = np.full(50, 2)
    ages[[3, 8, 20]] = [1, 0, 0]
    assert known.age.tolist() == ages.tolist()
    assert known.features.shape == (50, 32)


def test_likeness_stands_for_features_that_no_direction_fits(tmp_path):
    """Once rows have influences too, it is brought to their unit by the line through these rows."""
    likeness, knowledge = np.arange(20.0), Knowledge(unit(20, 8), np.arange(20.0))
    assert knowledge.at(np.zeros((1, 99))).estimate.tolist() == likeness.tolist()
    drawn = np.array([2, 5, 11])
    features = np.zeros((3, 99), np.float16)
    features[:, 0] = 0.5 + likeness[drawn] / 32
    with DrawnWriter(tmp_path, 99) as writer:
        writer.add(drawn, features)
    found = knowledge.at(np.eye(1, 99), [tmp_path])
    np.testing.assert_allclose(found.estimate, 0.5 + likeness / 32, atol=1e-6)
    against = knowledge.at(-np.eye(1, 99), [tmp_path])  # a falling line says that likeness is worth nothing
    assert len(set(np.delete(against.estimate, drawn).tolist())) == 1
