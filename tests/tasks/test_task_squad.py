import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterucb.tasks.tydiqa import best_exact, best_f1, normalise

TEXTS = st.lists(
    st.sampled_from(["the", "The", "cat", "Cat,", "dog", "a", "9", "кот", "。", "-"]), max_size=6
).map(" ".join)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("The  Cat, (a) sat\non AN end.", "cat sat on end"),
        ("theatre banana", "theatre banana"),
        ("U.S.", "us"),
        ("«Кот»。", "«кот»。"),
        ("the", ""),
    ],
)
def test_normal_form(text, plain):
    assert normalise(text) == plain


@pytest.mark.parametrize(
    ("prediction", "answers", "f1"),
    [
        ("cat sat", ["cat"], 2 / 3),
        ("cat cat", ["cat sat cat"], 4 / 5),
        ("cat", ["dog", "a cat sat down"], 1 / 2),
        ("cat", ["dog"], 0.0),
        ("the", ["the"], 0.0),
    ],
)
def test_f1_in_exact_fractions(prediction, answers, f1):
    assert best_f1(prediction, answers) == f1


@given(TEXTS, TEXTS)
def test_f1_is_symmetric_and_one_exactly_where_the_words_are_the_same(a, b):
    assert best_f1(a, [b]) == best_f1(b, [a])
    assert 0.0 <= best_f1(a, [b]) <= 1.0
    assert best_exact(a, [b]) == best_exact(b, [a])
    same = sorted(normalise(a).split()) == sorted(normalise(b).split()) != []
    assert (best_f1(a, [b]) == 1.0) == same
    if best_exact(a, [b]) and normalise(a):
        assert same


@given(TEXTS, TEXTS, TEXTS)
def test_another_answer_never_lowers_a_score(prediction, first, second):
    assert best_f1(prediction, [first, second]) == max(
        best_f1(prediction, [first]), best_f1(prediction, [second])
    )
    assert best_exact(prediction, [first, second]) >= best_exact(prediction, [first])
