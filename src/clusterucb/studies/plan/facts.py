"""What a plan has to know of a run's inputs: how many rows and tokens, and of what lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clusterucb.data.chat import Encoded
from clusterucb.errors import InputError
from clusterucb.run.session import Session

SAMPLE = 1000
"""Pool rows that are tokenised for a quick plan."""

Lengths = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Facts:
    """Rows and tokens of a run's inputs.

    Attributes:
        rows: usable rows of the pool, N.
        excluded: rows that cannot be used.
        numbers: the pool rows that were tokenised and can be used, (n,); n is N unless only a sample was.
        gradient_lengths: tokens that the gradient of each of these sees, (n,).
        training_lengths: tokens that training sees, (n,).
        target_lengths: tokens of each target row.
        subtasks: of the target.
        evaluated_lengths: tokens of each row that the evaluation takes the loss of.
    """

    rows: int
    excluded: int
    numbers: NDArray[np.int64]
    gradient_lengths: Lengths
    training_lengths: Lengths
    target_lengths: Lengths
    subtasks: int
    evaluated_lengths: Lengths

    @property
    def exact(self) -> bool:
        """Whether all rows were tokenised."""
        return len(self.numbers) == self.rows

    def gradient_tokens(self, rows: int) -> int:
        """Tokens of `rows` rows whose gradient is taken: of all, or of so many drawn at random."""
        return round(rows * float(self.gradient_lengths.mean()))

    def training_tokens(self, rows: int | NDArray[np.int64]) -> int:
        """Tokens in training, of these usable rows, or of so many drawn at random."""
        if isinstance(rows, int):
            return round(rows * float(self.training_lengths.mean()))
        if not self.exact:
            return self.training_tokens(len(rows))
        return int(self.training_lengths[rows].sum())


def read_facts(session: Session, *, quick: bool = False) -> Facts:
    """Read and tokenise all inputs of a run; nothing is written but into the session's directory.

    Args:
        session: of the run.
        quick: tokenise `SAMPLE` pool rows, drawn by the seed, and do not look for rows that nearly repeat
            what training must not see.

    Raises:
        InputError, ConfigError: what the run itself would refuse.
    """
    total = len(session.inputs.pool)
    chosen: Sequence[int] = range(total)
    if quick:
        rng = np.random.default_rng(session.config.seed)
        chosen = np.sort(rng.choice(total, min(SAMPLE, total), replace=False)).tolist()
        session.check_plan(total)
        session.check_settings()
    else:
        session.check_inputs()
    usable: list[int] = []
    excluded: list[dict[str, object]] = []
    kept_out = {} if quick else session.inputs.screening.kept_out
    lengths = _lengths(list(session.inputs.usable_rows(chosen, kept_out, usable, excluded)))
    if not usable:
        raise InputError(f"no row of the pool can be used: {excluded[0]['id']}: {excluded[0]['reason']}")
    rows = max(1, round(total * len(usable) / len(chosen)))
    session.check_plan(rows)
    settings = session.config
    evaluated = session.inputs.evaluation_tokens
    return Facts(
        rows=rows,
        excluded=total - rows,
        numbers=np.array(usable, np.int64),
        gradient_lengths=np.minimum(lengths, settings.gradients.gradient_length),
        training_lengths=np.minimum(lengths, settings.training.train_length),
        target_lengths=_lengths(session.inputs.targeted.tokens),
        subtasks=len(session.inputs.target.subtasks),
        evaluated_lengths=_lengths(evaluated),
    )


def _lengths(rows: Sequence[Encoded]) -> Lengths:
    return np.array([len(row) for row in rows], np.int64)
