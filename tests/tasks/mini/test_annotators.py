import numpy as np

from tasks.mini.annotators import annotate, most_frequent
from tasks.mini.questions import sample_question
from tasks.mini.world import TASK, sample_scene

NUMBERS = {word: str(k) for k, word in enumerate(("zero", "one", "two", "three", "four", "five", "six"))}


def normalised(answer: str) -> str:
    words = answer.lower().rstrip(".").split()
    return " ".join(NUMBERS.get(word, word) for word in words if word not in ("a", "the"))


def test_nearly_eight_of_ten_answers_agree_with_the_truth() -> None:
    rng, agreeing, soft = np.random.default_rng(0), [], []
    for _ in range(1500):
        scene = sample_scene(rng, TASK)
        question = sample_question(scene, rng)
        answers = annotate(question, scene, rng)
        assert len(answers) == 10
        assert all(answers)
        right = [normalised(answer) == question.answer for answer in answers]
        agreeing.append(sum(right))
        soft.append(np.mean([min((sum(right) - r) / 3, 1) for r in right]))
    assert 7.5 < np.mean(agreeing) < 8.1
    assert np.mean(soft) > 0.97  # the true answer scores nearly full accuracy
    assert min(agreeing) < 6
    assert max(agreeing) == 10


def test_most_frequent_folds_case_and_space_and_prefers_the_truth_in_ties() -> None:
    assert most_frequent(["Red", " red", "blue"], "blue") == "red"
    assert most_frequent(["blue", "red", "blue", "red"], "red") == "red"
    assert most_frequent(["blue", "red"], "green") == "blue"
