import re
from collections import Counter

import numpy as np

from tasks.mini.captions import caption_words
from tasks.mini.questions import FAMILIES, Question, question_words, sample_question
from tasks.mini.world import COLORS, SHAPES, TASK, Scene, Thing, sample_scene

PLAIN_WORD = {"tiny": "small", "big": "large"}


def asked(number: int, seed: int = 0) -> list[tuple[Scene, Question]]:
    rng = np.random.default_rng(seed)
    scenes = [sample_scene(rng, TASK) for _ in range(number)]
    return [(scene, sample_question(scene, rng)) for scene in scenes]


def named(phrase: str, scene: Scene) -> list[Thing]:
    """The things that a noun phrase of a question matches, parsed from its words."""
    words = [PLAIN_WORD.get(word, word) for word in phrase.split()]
    words = [
        "cross" if word == "crosses" else word.removesuffix("s") if word != "cross" else word
        for word in words
    ]
    attributes = [word for word in words if word in (*COLORS, *SHAPES, "small", "large")]
    return [t for t in scene.things if all(word in (t.color, t.shape, t.size) for word in attributes)]


def matching(pattern: str, form: str) -> list[tuple[re.Match[str], Scene, Question]]:
    found = [
        (match, scene, question)
        for scene, question in asked(3000)
        if question.family == form and (match := re.fullmatch(pattern, question.text))
    ]
    assert len(found) >= 5
    return found


def test_counts_are_right() -> None:
    for match, scene, question in matching(r"how many (.+) (?:are there|do you see)\?", "count"):
        assert question.answer == str(len(named(match[1], scene)))


def test_existence_is_right() -> None:
    for match, scene, question in matching(
        r"(?:is there an?|do you see any|do you see an?) (.+)\?", "existence"
    ):
        assert question.answer == ("yes" if named(match[1], scene) else "no")


def test_attributes_are_those_of_the_only_referent() -> None:
    for match, scene, question in matching(
        r"what (?:color|shape|size) is the ((?:\w+ ){0,2}\w+)\?", "attribute"
    ):
        (thing,) = named(match[1], scene)
        assert question.answer in (thing.color, thing.shape, thing.size)


def test_comparisons_of_number_are_right() -> None:
    for match, scene, question in matching(r"are there more (.+) than (.+)\?", "comparison"):
        more = len(named(match[1], scene)) > len(named(match[2], scene))
        assert question.answer == ("yes" if more else "no")


def test_left_and_right_are_right_and_clear() -> None:
    pattern = r"is the (.+?) (?:located )?(?:to the )?(left|right) of the (.+)\?"
    for match, scene, question in matching(pattern, "spatial"):
        (first,), (second,) = named(match[1], scene), named(match[3], scene)
        assert abs(first.x - second.x) >= 8
        assert question.answer == ("yes" if (first.x < second.x) == (match[2] == "left") else "no")


def test_words_are_listed_and_most_are_not_in_captions() -> None:
    words = set(question_words())
    used = {word.strip("?,") for _, question in asked(2000) for word in question.text.split()}
    assert used <= words
    assert len(words - set(caption_words())) > len(words) / 2


def test_families_answers_and_types_are_balanced() -> None:
    questions = [question for _, question in asked(3000)]
    families = Counter(question.family for question in questions)
    assert all(abs(families[name] / 3000 - share) < 0.05 for name, share in FAMILIES.items())
    answers = Counter(question.answer for question in questions)
    assert max(answers.values()) / 3000 < 0.3
    assert abs(answers["yes"] - answers["no"]) / 3000 < 0.05
    assert {q.answer_type for q in questions if q.answer in ("yes", "no")} == {"yes/no"}
    assert {q.answer_type for q in questions if q.family == "count"} == {"number"}
    assert {q.answer for q in questions if q.family == "count"} == set("012345")


def test_yes_and_no_are_balanced_within_every_wording() -> None:
    firsts: dict[str, Counter[str]] = {}
    for _, question in asked(4000, seed=1):
        if question.answer_type == "yes/no":
            firsts.setdefault(" ".join(question.text.split()[:2]), Counter())[question.answer] += 1
    for counts in firsts.values():
        if counts.total() >= 80:
            assert 0.3 < counts["yes"] / counts.total() < 0.7
