"""VQA's official answer normalisation and soft accuracy.

As in the data set's evaluation script (`vqaEval.py` in github.com/GT-Vision-Lab/VQA), quirks included, because
published figures were made with it.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from harness.errors import UserError

AnnotatorAnswer = tuple[int, str]
"""One annotator's `answer_id` and answer."""


_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'


_DIGIT_COMMA_DIGIT = re.compile(r"\d,\d")


# The script's pattern begins with `(?!<=\d)`, a mistyped look-behind that always succeeds: a period is removed unless
# a digit follows it, whatever precedes it.
_PERIOD = re.compile(r"\.(?!\d)")


# The script passes `re.UNICODE` as the count of `sub`, so only the first 32 periods are removed.
_PERIODS_REMOVED = int(re.UNICODE)


_NUMBER_WORDS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6",
    "seven": "7", "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip


_ARTICLES = frozenset({"a", "an", "the"})


# As in the script. Words are looked up in lower case, so entries with a capital never apply ("im" stays "im").
# "somebody'd" loses its apostrophe. "shes", "ill" and "well" are not in the table.
_CONTRACTION_TABLE = """
    aint=ain't arent=aren't cant=can't couldve=could've couldnt=couldn't couldn'tve=couldn't've
    couldnt've=couldn't've didnt=didn't doesnt=doesn't dont=don't hadnt=hadn't hadnt've=hadn't've
    hadn'tve=hadn't've hasnt=hasn't havent=haven't hed=he'd hed've=he'd've he'dve=he'd've hes=he's
    howd=how'd howll=how'll hows=how's Id've=I'd've I'dve=I'd've Im=I'm Ive=I've isnt=isn't itd=it'd
    itd've=it'd've it'dve=it'd've itll=it'll let's=let's maam=ma'am mightnt=mightn't
    mightnt've=mightn't've mightn'tve=mightn't've mightve=might've mustnt=mustn't mustve=must've
    neednt=needn't notve=not've oclock=o'clock oughtnt=oughtn't ow's'at='ow's'at 'ows'at='ow's'at
    'ow'sat='ow's'at shant=shan't shed've=she'd've she'dve=she'd've she's=she's shouldve=should've
    shouldnt=shouldn't shouldnt've=shouldn't've shouldn'tve=shouldn't've somebody'd=somebodyd
    somebodyd've=somebody'd've somebody'dve=somebody'd've somebodyll=somebody'll somebodys=somebody's
    someoned=someone'd someoned've=someone'd've someone'dve=someone'd've someonell=someone'll
    someones=someone's somethingd=something'd somethingd've=something'd've something'dve=something'd've
    somethingll=something'll thats=that's thered=there'd thered've=there'd've there'dve=there'd've
    therere=there're theres=there's theyd=they'd theyd've=they'd've they'dve=they'd've theyll=they'll
    theyre=they're theyve=they've twas='twas wasnt=wasn't wed've=we'd've we'dve=we'd've weve=we've
    werent=weren't whatll=what'll whatre=what're whats=what's whatve=what've whens=when's whered=where'd
    wheres=where's whereve=where've whod=who'd whod've=who'd've who'dve=who'd've wholl=who'll whos=who's
    whove=who've whyll=why'll whyre=why're whys=why's wont=won't wouldve=would've wouldnt=wouldn't
    wouldnt've=wouldn't've wouldn'tve=wouldn't've yall=y'all yall'll=y'all'll y'allll=y'all'll
    yall'd've=y'all'd've y'alld've=y'all'd've y'all'dve=y'all'd've youd=you'd youd've=you'd've
    you'dve=you'd've youll=you'll youre=you're youve=you've
"""


_CONTRACTIONS = dict(pair.split("=") for pair in _CONTRACTION_TABLE.split())


@lru_cache(maxsize=1 << 20)  # VQA v2 has 6.6 million answers, few of them different
def normalize_answer(answer: str) -> str:
    """The answer as the official script compares it if the annotators disagree."""
    return _digits_and_articles(_punctuation(_clean(answer)))


def soft_accuracy(answer: str, annotator_answers: Sequence[AnnotatorAnswer]) -> float:
    """Mean over the leave-one-annotator-out subsets of min(matches / 3, 1), in [0, 1].

    Both sides are normalised unless all annotators gave the same string.
    """
    given = _clean(answer)
    truths = [(annotator, _clean(text)) for annotator, text in annotator_answers]
    if len({text for _, text in truths}) > 1:
        given = normalize_answer(given)
        truths = [(annotator, normalize_answer(text)) for annotator, text in truths]
    matching = [annotator for annotator, text in truths if text == given]
    # Thirds are summed as integers, so that the order of the annotators cannot change the last bit.
    thirds = sum(min(sum(other != left_out for other in matching), 3) for left_out, _ in truths)
    return thirds / (3 * len(truths))


def score(predictions: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Mean soft accuracy in percent: `accuracy` over all, and one figure per answer type that occurs.

    predictions: each with "id", "score" in [0, 1] and "answer_type".
    Raises `UserError` if there are no predictions, or if a question has no annotations.
    """
    by_type: defaultdict[str, list[float]] = defaultdict(list)
    for prediction in predictions:
        if prediction["score"] is None:
            raise UserError(
                f"question {prediction['id']} has no annotations, so its accuracy is unknown here; "
                "upload the submission file to the evaluation server"
            )
        by_type[prediction["answer_type"]].append(prediction["score"])
    if not by_type:
        raise UserError("no predictions to score")
    everything = [value for values in by_type.values() for value in values]
    parts = {name: _percent(by_type[name]) for name in sorted(by_type)}
    return {"accuracy": _percent(everything), **parts}


def _percent(scores: Sequence[float]) -> float:
    return 100 * math.fsum(scores) / len(scores)


def _clean(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _punctuation(text: str) -> str:
    """Remove each mark that stands next to a space anywhere in `text`; replace other marks by a space.

    The test always reads the original text. If it has a comma between digits, every mark is removed.
    """
    result = text
    has_number_with_comma = _DIGIT_COMMA_DIGIT.search(text) is not None
    for mark in _PUNCTUATION:
        if mark in text:
            beside_space = f"{mark} " in text or f" {mark}" in text
            result = result.replace(mark, "" if beside_space or has_number_with_comma else " ")
    return _PERIOD.sub("", result, count=_PERIODS_REMOVED)


def _digits_and_articles(text: str) -> str:
    words = [_NUMBER_WORDS.get(word, word) for word in text.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)
