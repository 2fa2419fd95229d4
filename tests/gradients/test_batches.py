from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from tiny_adapters import rows

from clusterucb.gradients.batches import collate, micro_batches

LENGTHS = st.lists(st.integers(1, 50), max_size=40).map(lambda lengths: np.array(lengths, np.int64))


@given(LENGTHS, st.integers(1, 200))
def test_a_plan_holds_every_position_once_longest_first_and_is_bounded(lengths, bound):
    batches = micro_batches(lengths, bound)
    whole = np.concatenate([np.empty(0, np.int64), *batches])
    assert sorted(whole.tolist()) == list(range(len(lengths)))
    assert (np.diff(lengths[whole]) <= 0).all()
    for batch in batches:
        assert len(batch) == 1 or len(batch) * lengths[batch].max() <= bound
    for batch, following in pairwise(batches):  # no batch could have taken one more
        assert (len(batch) + 1) * lengths[batch].max() > bound
        assert len(following)


@given(st.lists(st.integers(2, 30), min_size=1, max_size=8), st.integers(0, 99))
def test_a_batch_holds_every_row_and_every_label_where_it_is_predicted(lengths, seed):
    made = rows(lengths, seed)
    batch = collate(made)
    width = max(lengths)
    expected = [
        (b, t, int(row.ids[t])) for b, row in enumerate(made) for t in range(len(row.ids)) if row.labels[t]
    ]
    predictors = batch.predictors.tolist()
    found = zip(batch.owners.tolist(), predictors, batch.answers.tolist(), strict=True)
    assert [(b, p - b * width + 1, answer) for b, p, answer in found] == expected
    assert batch.label_counts.tolist() == [int(row.labels.sum()) for row in made]
    for b, row in enumerate(made):
        length = len(row.ids)
        assert batch.ids[b, :length].tolist() == row.ids.tolist()
        assert batch.attention[b].tolist() == [1] * length + [0] * (width - length)
    numbers = np.arange(len(batch.owners), dtype=np.float64)
    slow = [numbers[batch.owners == b].mean() for b in range(len(made))]
    np.testing.assert_allclose(batch.row_means(numbers), slow)
