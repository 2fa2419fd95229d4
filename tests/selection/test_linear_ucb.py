"""linear_ucb: row by row, by what is known of rows before they are drawn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from selection_helpers import check_consistent

from clusterucb.selection.bandit import select
from clusterucb.selection.known import Known
from clusterucb.selection.linear_ucb import LinearUCB, _Belief, _first, linear_ucb
from clusterucb.selection.policies import UCBBeta


class Pool:
    """Rows in clusters, whose influence is linear in their features, and noise."""

    def __init__(self, seed, n=1500, clusters=30, dimensions=12, noise=0.05):
        self.rng = rng = np.random.default_rng(seed)
        self.clusters = rng.integers(0, clusters, n)
        centres = rng.normal(size=(clusters, dimensions))
        features = centres[self.clusters] + rng.normal(size=(n, dimensions))
        self.features = (features / np.linalg.norm(features, axis=1)[:, None]).astype(np.float32)
        self.scores = self.features @ rng.normal(size=dimensions) * 0.2 + noise * rng.normal(size=n)
        self.scores += 0.1 * rng.normal(size=clusters)[self.clusters]

    def known(self, estimate, features):
        return Known(estimate, features, np.zeros(len(estimate), np.int64))

    def well_known(self, noise):
        """The features and, but for so much noise, the influence."""
        return self.known(self.scores + self.noise(noise), self.features)

    def linear_ucb(self, known, how=LinearUCB(), **options):  # noqa: B008 - a frozen value
        return linear_ucb(self.clusters, known, self, how, **options)

    def noise(self, scale=1.0):
        return self.rng.normal(size=len(self.scores)) * scale

    def best(self):
        return np.argsort(-self.scores)[:75]

    def recall(self, selection):
        return np.isin(self.best(), selection.rows).mean()

    def __call__(self, rows):
        return self.scores[rows]


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.data())
def test_a_selection_is_consistent_in_itself(seed, data):
    rng = np.random.default_rng(seed)
    n = data.draw(st.integers(8, 60))
    spend, keep = data.draw(st.integers(1, n)), data.draw(st.integers(1, n))
    clusters, scores = rng.integers(0, 5, n) * 3, rng.integers(-3, 4, n) / 4
    known = Known(rng.integers(-2, 3, n) / 2, rng.normal(size=(n, 3)), rng.integers(0, 2, n))
    told = []
    how = LinearUCB(beta=data.draw(st.sampled_from([0.0, 1.0, 3.0])), rounds=data.draw(st.integers(1, 7)))
    shares = {"budget": min(1, (spend + 0.1) / n), "top_p": min(1, (keep + 0.1) / n)}
    found = linear_ucb(clusters, known, lambda r: scores[r], how, seed=1, on_draw=told.append, **shares)
    check_consistent(found, told, clusters, scores)
    assert (found.spent, len(found.rows)) == (spend, keep)
    left_out = np.setdiff1d(found.drawn, found.rows)
    assert not len(left_out) or scores[left_out].max() <= found.scores.min()
    assert 0 <= found.expected_change <= 1


def test_the_rows_drawn_are_those_of_highest_score_of_all_open_rows():
    """The bound that spares most rows a variance leaves the choice what it would be without."""
    pool = Pool(3)
    belief = _Belief(pool.clusters, pool.well_known(0.1))
    rows = pool.rng.permutation(1500)[:200]
    belief.see(rows, pool.scores[rows])
    score = belief.expected() + 2.0 * belief._deviation(np.arange(1500))
    score[rows] = -np.inf
    assert belief.best(40, 2.0).tolist() == np.sort(np.argsort(-score, kind="stable")[:40]).tolist()


@pytest.mark.parametrize("seed", range(3))
def test_good_estimates_and_features_find_far_more_than_clusters_at_a_quarter_of_the_budget(seed):
    pool = Pool(seed)
    ours = pool.recall(pool.linear_ucb(pool.well_known(0.1), budget=0.1))
    published = pool.recall(select(pool.clusters, pool, UCBBeta(), budget=0.4, cold_start=0.0))
    assert ours > published > 0.3


@pytest.mark.whole
@pytest.mark.parametrize("prior", ["random", "reversed", "constant", "one lie"])
@pytest.mark.parametrize("budget", [0.1, 0.2, 0.4])
def test_a_worthless_prior_finds_no_clearly_less_than_the_clusters_alone(prior, budget):
    """Mean over pools, as single ones scatter."""
    ours, published = [], []
    for seed in range(16):
        pool = Pool(100 + seed)
        estimate = {
            "random": pool.noise(),
            "reversed": -pool.scores,
            "constant": np.zeros(1500),
            "one lie": np.where(np.argsort(np.argsort(-pool.scores)) < 75, -9.0, pool.noise(0.1)),
        }[prior]
        known = pool.known(estimate, pool.rng.normal(size=(1500, 8)))
        ours.append(pool.recall(pool.linear_ucb(known, budget=budget, seed=seed)))
        published.append(pool.recall(select(pool.clusters, pool, UCBBeta(), budget=budget, seed=seed)))
    assert np.mean(ours) > np.mean(published) - 0.06


def test_the_first_part_takes_the_likeliest_rows_and_rows_of_every_cluster_in_turn():
    labels = np.repeat([4, 7, 9], [50, 30, 2])
    known = Known.estimates(np.arange(82.0))
    rows = _first(labels, known, 20, 11, np.random.default_rng(0))
    assert len(set(rows.tolist())) == 20
    assert rows[:9].tolist() == list(range(73, 82))  # the last two are all of cluster 9
    assert sorted(np.bincount(labels[rows[9:]], minlength=10)[[4, 7]].tolist()) == [5, 6]


@pytest.mark.parametrize("spend", [1, 2, 7, 100, 101])
@pytest.mark.parametrize("rounds", [1, 2, 10])
def test_the_parts_are_the_budget(spend, rounds):
    parts = LinearUCB(rounds=rounds).parts(spend)
    assert sum(parts) == spend
    assert all(parts)
    assert len(parts) <= rounds


def test_recall_grows_with_the_budget():
    def recall(pool, budget):
        return pool.recall(pool.linear_ucb(pool.known(pool.noise(), pool.features), budget=budget))

    budgets = (0.05, 0.1, 0.2, 0.4, 1.0)
    found = [np.mean([recall(Pool(seed), budget) for seed in range(3)]) for budget in budgets]
    assert found == sorted(found)
    assert found[-1] == 1


def test_old_estimates_are_trusted_less_than_new_ones_as_the_draws_say():
    """Those of age 1 are noise: the best rows are then found among those of age 0 first."""
    pool = Pool(5, noise=0.3)
    age = (np.arange(1500) % 2).astype(np.int64)
    estimate = np.where(age == 0, pool.scores, pool.noise(0.5))
    ages = pool.linear_ucb(Known(estimate, np.zeros((1500, 0), np.float32), age), budget=0.1)
    blind = pool.linear_ucb(Known.estimates(estimate), budget=0.1)
    assert pool.recall(ages) > pool.recall(blind)


def test_what_is_kept_undrawn_is_right_more_often_than_the_best_of_what_was_drawn():
    """At a budget of what is kept, all drawn rows would have to be kept."""
    kept, drawn = [], []
    for seed in range(4):
        pool = Pool(seed)
        found = pool.linear_ucb(pool.well_known(0.1), budget=0.05, top_p=0.05)
        kept.append(pool.recall(found))
        drawn.append(np.isin(pool.best(), found.drawn).mean())
    assert np.mean(kept) > np.mean(drawn)


def test_the_expected_change_is_on_the_safe_side_of_the_true_one():
    expected, true = [], []
    for seed in range(12):
        pool = Pool(seed, noise=0.1)
        found = pool.linear_ucb(pool.well_known(0.2), budget=0.08)
        expected.append(found.expected_change)
        true.append(1 - pool.recall(found))
    assert 0.03 < np.mean(true) < 0.5
    assert np.mean(true) < np.mean(expected) < 2.5 * np.mean(true)


def test_drawing_stops_once_hardly_a_row_is_expected_to_change():
    pool = Pool(2)
    known = pool.well_known(0.1)
    whole = pool.linear_ucb(known, LinearUCB(rounds=20), budget=0.6)
    stopped = pool.linear_ucb(known, LinearUCB(rounds=20, stop=0.1), budget=0.6)
    assert whole.spent == 900
    assert stopped.spent < 450
    assert stopped.expected_change <= 0.1
    assert pool.recall(stopped) > 0.8
    assert whole.drawn[: stopped.spent].tolist() == stopped.drawn.tolist()


def test_the_same_seed_gives_the_same_selection_and_another_seed_other_draws():
    pool = Pool(0)
    known = pool.known(pool.noise(), pool.features)
    one, again, other = (pool.linear_ucb(known, seed=seed) for seed in (1, 1, 2))
    assert one.drawn.tolist() == again.drawn.tolist() != other.drawn.tolist()
