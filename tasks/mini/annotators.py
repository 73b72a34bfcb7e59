"""Ten simulated annotators who answer a question about a scene and do not always agree.

They confuse similar colours, miscount larger groups, look at the wrong thing and use synonyms. Sometimes they
write "two" or "A circle." for "2" or "circle", which the official normalisation undoes.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from tasks.mini.clauses import VALUES
from tasks.mini.questions import Question
from tasks.mini.world import Scene, pick

ANNOTATORS = 10

_FLIP = 0.04  # probability of a wrong yes or no, per annotator
_MISCOUNT, _MISCOUNT_PER_THING = 0.04, 0.06
# Beta distribution, over questions, of the probability that an annotator gives another colour, shape or size.
_DOUBT = (1.8, 3.0)
_LARGEST_DOUBT = 0.6
_WRONG_THING = 0.2  # share of those other answers that describe another thing of the scene
_SURFACE = 0.08  # probability of another spelling with the same meaning

_CONFUSED: dict[str, tuple[str, ...]] = {
    "red": ("orange", "orange", "pink"),
    "orange": ("red", "yellow"),
    "purple": ("blue", "violet", "violet"),
    "blue": ("purple", "navy"),
    "white": ("yellow", "gray"),
    "yellow": ("white", "orange", "gold"),
    "brown": ("orange", "red"),
    "green": ("lime", "teal"),
    "circle": ("round", "ring", "ball"),
    "square": ("box", "rectangle", "block"),
    "triangle": ("pyramid", "arrow"),
    "star": ("starfish", "cross"),
    "cross": ("plus", "x", "star"),
    "heart": ("love heart", "triangle"),
    "small": ("tiny", "little", "large"),
    "large": ("big", "big", "small"),
}
_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six")


def annotate(question: Question, scene: Scene, rng: np.random.Generator) -> list[str]:
    """Ten answers as typed; on average 7.8 of them agree with the true one."""
    doubt = min(float(rng.beta(*_DOUBT)), _LARGEST_DOUBT)
    return [_typed(_intended(question, scene, doubt, rng), rng) for _ in range(ANNOTATORS)]


def most_frequent(answers: list[str], truth: str) -> str:
    """The official `multiple_choice_answer`: the most frequent answer, stripped and in lower case.

    Ties go to the truth if it is among them, else to the answer given first.
    """
    counts = Counter(answer.strip().lower() for answer in answers)
    return max(counts, key=lambda answer: (counts[answer], answer == truth))


def _intended(question: Question, scene: Scene, doubt: float, rng: np.random.Generator) -> str:
    """The answer that one annotator intends."""
    truth = question.answer
    if question.answer_type == "yes/no":
        return {"yes": "no", "no": "yes"}[truth] if rng.random() < _FLIP else truth
    if question.answer_type == "number":
        number = int(truth)
        if rng.random() < _MISCOUNT + _MISCOUNT_PER_THING * number:
            number = max(0, number + pick((-1, -1, 1), rng)) if number else 1
        return str(number)
    if rng.random() >= doubt:
        return truth
    if rng.random() < _WRONG_THING:
        kind = next(kind for kind, values in VALUES.items() if truth in values)
        return str(getattr(pick(scene.things, rng), kind))
    return pick(_CONFUSED[truth], rng)


def _typed(answer: str, rng: np.random.Generator) -> str:
    """The answer as written down: mostly unchanged, sometimes in another form with the same meaning."""
    if rng.random() >= _SURFACE:
        return answer
    if answer.isdigit():
        return _NUMBER_WORDS[int(answer)]
    forms = [answer.capitalize(), answer + "."]
    if answer in VALUES["shape"]:
        forms += [f"a {answer}", f"the {answer}"]
    return pick(forms, rng)
