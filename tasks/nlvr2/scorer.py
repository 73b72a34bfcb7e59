"""How NLVR2's labels are scored from predictions and from the official files."""

from __future__ import annotations

from pathlib import Path

from tasks.classification.label_files import label_files
from tasks.classification.scoring import all_right
from tasks.nlvr2.files import consistency_group, parse_label, read_predictions, read_statements
from tasks.nlvr2.scoring import score
from tasks.scorer import Prediction, Scorer, Share


def read_truths(path: Path) -> dict[str, str]:
    """Labels by identifier."""
    return {statement.id: statement.label for statement in read_statements(path)[0].values()}


def shares(metric: str) -> tuple[Share, ...]:
    """Accuracy counts examples and consistency sentences, of all examples or of a subset: `… (balanced)`."""
    what, _, subset = metric.removesuffix(")").partition(" (")

    def counts(prediction: Prediction) -> bool:
        return not subset or subset in prediction.get("subsets", ())

    if what == "accuracy":
        return (Share(of=counts),)
    if what == "consistency":
        return (Share(unit=lambda each: consistency_group(each["id"]), of=counts, value=all_right),)
    return ()


SCORER = Scorer(score, shares, label_files(read_truths, read_predictions, parse_label))
