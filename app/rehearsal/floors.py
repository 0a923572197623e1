"""What a reward model must beat: a bag of words that never reads the prompt."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score

WORD = r"[\w']+|[^\w\s]"
STRENGTHS = (0.01, 0.03, 0.1, 0.3, 1.0)


class BagOfWords:
    """Logistic regression on the difference of two answers' counts of words and word pairs, trained on judgments.

    The strength of its ridge is chosen by five-fold cross-validation on the same judgments, so that it is a fair floor.
    """

    def __init__(self, chosen: Sequence[str], rejected: Sequence[str], seed: int = 0) -> None:
        self._words = CountVectorizer(ngram_range=(1, 2), token_pattern=WORD, dtype=np.float64)
        self._words.fit([*chosen, *rejected])
        # Half of the pairs are turned round, so that there are two classes; without an intercept nothing else changes.
        turn = np.random.default_rng(seed).permutation(len(chosen)) % 2
        sign = np.where(turn == 1, -1.0, 1.0)
        x = self._difference(chosen, rejected).multiply(sign[:, None]).tocsr()
        folds = StratifiedKFold(5, shuffle=True, random_state=seed)
        scores = [cross_val_score(self._model(c), x, turn, cv=folds).mean() for c in STRENGTHS]
        self.strength = STRENGTHS[int(np.argmax(scores))]
        self._fitted = self._model(self.strength).fit(x, turn)

    @staticmethod
    def _model(strength: float) -> LogisticRegression:
        return LogisticRegression(C=strength, fit_intercept=False, max_iter=1000)

    def _difference(self, first: Sequence[str], second: Sequence[str]) -> Any:
        return self._words.transform(first) - self._words.transform(second)

    def margin(self, first: Sequence[str], second: Sequence[str]) -> list[float]:
        """How much better the first of each pair is, in log-odds."""
        # Class 1 are the pairs turned round, so the decision speaks for the second.
        return [-float(m) for m in self._fitted.decision_function(self._difference(first, second))]


def accuracy(margin: Sequence[float], label: Sequence[float]) -> float:
    """How often the sign of a margin agrees with its label: 1 where the first is better, 0 where the second is.

    A margin of 0 is half right. Pairs whose label is one half, as good as each other, are left out.
    """
    marks = [0.5 if m == 0 else float((m > 0) == (y > 0.5)) for m, y in zip(margin, label, strict=True) if y != 0.5]
    return sum(marks) / max(1, len(marks))
