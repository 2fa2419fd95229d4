import numpy as np
import pytest
import torch
from training_helpers import rows

from clusterucb.data.chat import Encoded, fit
from clusterucb.data.tokens import FittedTokens, Tokens
from clusterucb.gradients.batches import collate
from clusterucb.training.data import SwappableRows, collate_for_training


def test_training_and_gradients_see_the_same_tokens_and_labels():
    some = rows(5)
    trained, compared = collate_for_training(some), collate(some)
    assert torch.equal(trained["input_ids"], compared.ids)
    assert torch.equal(trained["attention_mask"], compared.attention)
    for b, row in enumerate(some):
        expected = [int(t) if label else -100 for t, label in zip(row.ids, row.labels, strict=True)]
        assert trained["labels"][b].tolist() == expected + [-100] * (compared.ids.shape[1] - len(row))
    assert int((trained["labels"] != -100).sum()) == len(compared.answers)


def test_swapped_rows_are_the_same_number_of_others():
    some = rows(9)
    dataset = SwappableRows(some, np.array([4, 2, 8]))
    assert [dataset[i] for i in range(len(dataset))] == [some[4], some[2], some[8]]
    dataset.swap(np.array([0, 1, 5]))
    assert [dataset.row(i) for i in range(len(dataset))] == [0, 1, 5]
    assert dataset[2] is some[5]
    with pytest.raises(ValueError, match="2 rows instead of 3"):
        dataset.swap(np.array([0, 1]))


def test_fitted_rows_are_cut_from_the_left_and_keep_their_labels(tmp_path):
    Tokens.write(tmp_path, rows(9))
    tokens = Tokens.open(tmp_path)
    fitted = FittedTokens(tokens, 12)
    assert len(fitted) == 9
    for i, row in enumerate(tokens):
        assert len(fitted[i]) == len(fit(row, 12)) <= fitted.lengths[i] <= 12
        assert np.array_equal(fitted[i].ids[-2:], row.ids[-2:])


def test_a_row_that_does_not_fit_is_no_row_without_labels(tmp_path):
    Tokens.write(tmp_path, [Encoded(np.arange(20, dtype=np.int32), np.arange(20) >= 1)])
    with pytest.raises(ValueError, match="row 0: "):
        FittedTokens(Tokens.open(tmp_path), 5)[0]
