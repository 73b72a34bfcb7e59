"""Questions about a scene, each with the one answer that the scene determines.

A question is asked only if it is unambiguous: "the" refers to exactly one thing, and comparisons of positions and
distances are clear by several pixels. A yes/no question is asked only if the scene allows both answers to the same
form. The answer is then drawn first, so that no form predicts its answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations
from math import hypot

import numpy as np

from tasks.mini.clauses import VALUES, Noun
from tasks.mini.wordings import EDGES, NAMES, TO, WORDINGS, question_words
from tasks.mini.world import RELATIONS, SHAPES, SIZES, Scene, Thing, pick, plural, relation_holds

__all__ = ["FAMILIES", "MAX_COUNT", "Question", "question_words", "sample_question"]

MAX_COUNT = 5
FAMILIES: dict[str, float] = {
    "attribute": 0.4,
    "count": 0.22,
    "existence": 0.12,
    "comparison": 0.06,
    "spatial": 0.2,
}
"""Question family to the share it is drawn with; if the scene allows no question of a family, another is drawn.

Most weight is on counts and positions, which pre-training does not teach and a few thousand examples do. Existence
is what captions are about, so a frozen model knows it; comparisons stay near chance whatever is tuned.
"""

_CLEAR_DISTANCE = 4  # pixels by which the nearest or outermost thing must lead the next
_FAMILY_TRIES = 40
_COUNT_WEIGHTS = (1.0, 1.0, 1.0, 1.2, 1.8, 2.5)  # few scenes allow questions with a large count


@dataclass(frozen=True)
class Question:
    """`family` is a key of `FAMILIES`; `answer_type` is one of the official "yes/no", "number" and "other"."""

    text: str
    answer: str
    family: str
    answer_type: str


_Form = Callable[[Scene, np.random.Generator], Question | None]


def sample_question(scene: Scene, rng: np.random.Generator) -> Question:
    """A random question about a scene of two or more things; families are drawn with fixed shares."""
    names, ends = tuple(FAMILIES), np.cumsum(list(FAMILIES.values()))
    while True:
        family = names[int(np.searchsorted(ends, rng.random() * ends[-1], side="right"))]
        for _ in range(_FAMILY_TRIES):
            question = pick(_FORMS[family], rng)(scene, rng)
            if question is not None:
                return question


def _ask(form: str, family: str, answer: str, rng: np.random.Generator, *slots: str) -> Question:
    text = pick(WORDINGS[form], rng).format(*slots).replace(" a orange", " an orange")
    kind = "number" if answer.isdigit() else "yes/no" if answer in ("yes", "no") else "other"
    return Question(text, answer, family, kind)


def _phrase(noun: Noun, rng: np.random.Generator) -> str:
    """The noun with its words replaced by those of questions, some of which captions never use."""
    return " ".join(pick(NAMES.get(word, (word,)), rng) for word in noun.text.split())


def _unique_noun(thing: Thing, scene: Scene, rng: np.random.Generator, hidden: str = "") -> Noun | None:
    """A description that matches nothing else in the scene and does not mention `hidden`; mostly a short one."""
    kinds = [kind for kind in VALUES if kind != hidden]
    short = [Noun(**{kind: getattr(thing, kind)}) for kind in kinds if kind != "size"]
    long = [
        Noun(**{first: getattr(thing, first), second: getattr(thing, second)})
        for first, second in permutations(kinds, 2)
    ]
    for nouns in (short, long):
        unique = [noun for noun in nouns if len(noun.among(scene)) == 1]
        if unique and (nouns is long or rng.random() < 0.7):
            return pick(unique, rng)
    return None


def _two_referents(scene: Scene, rng: np.random.Generator) -> tuple[Thing, Noun, Thing, Noun] | None:
    """Two different things, each with a description that matches only it."""
    first, second = pick(scene.things, rng), pick(scene.things, rng)
    nouns = _unique_noun(first, scene, rng), _unique_noun(second, scene, rng)
    if first is second or nouns[0] is None or nouns[1] is None:
        return None
    return first, nouns[0], second, nouns[1]


def _attribute(scene: Scene, rng: np.random.Generator) -> Question | None:
    thing = pick(scene.things, rng)
    kind = pick(("color", "color", "color", "color", "shape", "shape", "shape", "size"), rng)
    noun = _unique_noun(thing, scene, rng, hidden=kind)
    return _ask(kind, "attribute", getattr(thing, kind), rng, _phrase(noun, rng)) if noun else None


def _attribute_beside(scene: Scene, rng: np.random.Generator) -> Question | None:
    """The color of the only thing of a shape that is, for example, left of the blue square."""
    landmark, thing = pick(scene.things, rng), pick(scene.things, rng)
    name, relation = _unique_noun(landmark, scene, rng), pick(RELATIONS, rng)
    noun = Noun(shape=thing.shape)
    rivals = [t for t in noun.among(scene) if t is not landmark and relation_holds(t, landmark, relation, 1)]
    if name is None or rivals != [thing] or not relation_holds(thing, landmark, relation):
        return None
    where = pick(TO[relation], rng)
    return _ask("beside_color", "attribute", thing.color, rng, _phrase(name, rng), _phrase(noun, rng), where)


def _count(scene: Scene, rng: np.random.Generator) -> Question | None:
    nouns = [Noun(**{kind: value}) for kind, values in VALUES.items() for value in values] + [Noun()]
    nouns += [Noun(color=t.color, shape=shape) for t in scene.things for shape in SHAPES]
    nouns += [Noun(shape=t.shape, size=size) for t in scene.things for size in SIZES]
    by_count: list[list[Noun]] = [[] for _ in range(MAX_COUNT + 1)]
    for noun in nouns:
        number = len(noun.among(scene))
        if number <= MAX_COUNT:
            by_count[number].append(noun)
    ends = np.cumsum(_COUNT_WEIGHTS)
    number = int(np.searchsorted(ends, rng.random() * ends[-1], side="right"))
    if not by_count[number]:
        return None
    return _ask("count", "count", str(number), rng, plural(_phrase(pick(by_count[number], rng), rng)))


def _existence(scene: Scene, rng: np.random.Generator) -> Question | None:
    kinds = pick(
        (("color", "shape"), ("color", "shape"), ("size", "shape"), ("size", "color"), ("shape",)), rng
    )
    thing, other = pick(scene.things, rng), pick(scene.things, rng)
    present = Noun(**{kind: getattr(thing, kind) for kind in kinds})
    # Something absent: one word of the description is replaced, often by a word for another thing.
    kind = pick(kinds, rng)
    word = getattr(other, kind) if rng.random() < 0.5 else pick(VALUES[kind], rng)
    absent = Noun(**({k: getattr(thing, k) for k in kinds} | {kind: word}))
    if absent.among(scene):
        return None
    return _yes_or_no(
        rng,
        lambda noun, answer: (
            _ask("existence", "existence", answer, rng, _phrase(noun, rng))
            if rng.random() < 0.6
            else _ask("existence_plural", "existence", answer, rng, plural(_phrase(noun, rng)))
        ),
        [present],
        [absent],
    )


def _more(scene: Scene, rng: np.random.Generator) -> Question | None:
    kind = pick(("color", "shape", "shape", "size"), rng)
    counts = {value: sum(getattr(t, kind) == value for t in scene.things) for value in VALUES[kind]}
    pairs = [(a, b) for a, b in permutations(counts, 2) if counts[a] and counts[b]]
    return _yes_or_no(
        rng,
        lambda pair, answer: _ask(
            "more", "comparison", answer, rng, *(plural(_phrase(Noun(**{kind: v}), rng)) for v in pair)
        ),
        [(a, b) for a, b in pairs if counts[a] > counts[b]],
        [(a, b) for a, b in pairs if counts[a] <= counts[b]],
    )


def _bigger(scene: Scene, rng: np.random.Generator) -> Question | None:
    pair = _two_referents(scene, rng)
    if pair is None or pair[0].size == pair[2].size or pair[1].size or pair[3].size:
        return None
    first, first_noun, _, second_noun = pair
    one, two = _phrase(first_noun, rng), _phrase(second_noun, rng)
    large, small = (one, two) if first.size == "large" else (two, one)
    if (
        rng.random() < 0.25
        and first_noun.shape
        and second_noun.shape
        and first_noun.shape != second_noun.shape
    ):
        shape = first_noun.shape if large == one else second_noun.shape
        return _ask("which_bigger", "comparison", shape, rng, one, two)
    return _yes_or_no(
        rng,
        lambda names, answer: _ask("bigger", "comparison", answer, rng, *names),
        [(large, small)],
        [(small, large)],
    )


def _same(scene: Scene, rng: np.random.Generator) -> Question | None:
    kind = pick(tuple(VALUES), rng)
    named = [(t, noun) for t in scene.things if (noun := _unique_noun(t, scene, rng, hidden=kind))]
    pairs = list(permutations(named, 2))
    return _yes_or_no(
        rng,
        lambda pair, answer: _ask(
            "same", "comparison", answer, rng, _phrase(pair[0][1], rng), _phrase(pair[1][1], rng), kind
        ),
        [(a, b) for a, b in pairs if getattr(a[0], kind) == getattr(b[0], kind)],
        [(a, b) for a, b in pairs if getattr(a[0], kind) != getattr(b[0], kind)],
    )


def _relation(scene: Scene, rng: np.random.Generator) -> Question | None:
    pair = _two_referents(scene, rng)
    if pair is None:
        return None
    first, first_noun, second, second_noun = pair
    return _yes_or_no(
        rng,
        lambda relation, answer: _ask(
            "relation",
            "spatial",
            answer,
            rng,
            _phrase(first_noun, rng),
            _phrase(second_noun, rng),
            pick(TO[relation], rng),
        ),
        [relation for relation in RELATIONS if relation_holds(first, second, relation)],
        [relation for relation in RELATIONS if relation_holds(second, first, relation)],
    )


def _nearest(scene: Scene, rng: np.random.Generator) -> Question | None:
    landmark = pick(scene.things, rng)
    name = _unique_noun(landmark, scene, rng)
    if name is None:
        return None
    others = [(hypot(t.x - landmark.x, t.y - landmark.y), t) for t in scene.things if t is not landmark]
    thing = _leader(others)
    return _of_thing("nearest", thing, rng, _phrase(name, rng), _phrase(Noun(), rng)) if thing else None


def _beside(scene: Scene, rng: np.random.Generator) -> Question | None:
    landmark, relation = pick(scene.things, rng), pick(RELATIONS, rng)
    name = _unique_noun(landmark, scene, rng)
    rivals = [t for t in scene.things if t is not landmark and relation_holds(t, landmark, relation, 1)]
    if name is None or len(rivals) != 1 or not relation_holds(rivals[0], landmark, relation):
        return None
    where = pick(TO[relation], rng)
    return _of_thing("beside", rivals[0], rng, _phrase(name, rng), _phrase(Noun(), rng), where)


def _edge(scene: Scene, rng: np.random.Generator) -> Question | None:
    edge = pick(RELATIONS, rng)
    sign = 1 if edge in ("left of", "above") else -1
    sideways = edge in ("left of", "right of")
    thing = _leader([(sign * (t.x if sideways else t.y), t) for t in scene.things])
    return _of_thing("edge", thing, rng, _phrase(Noun(), rng), pick(EDGES[edge], rng)) if thing else None


def _leader(ranked: Sequence[tuple[float, Thing]]) -> Thing | None:
    """The thing with the lowest value; `None` if it does not lead clearly."""
    order = sorted(ranked, key=lambda entry: entry[0])
    if len(order) > 1 and order[1][0] - order[0][0] < _CLEAR_DISTANCE:
        return None
    return order[0][1]


def _of_thing(form: str, thing: Thing, rng: np.random.Generator, *slots: str) -> Question:
    kind = pick(("color", "shape"), rng)
    return _ask(f"{form}_{kind}", "spatial", getattr(thing, kind), rng, *slots)


def _yes_or_no(
    rng: np.random.Generator,
    ask: Callable[..., Question],
    yes: Sequence[object],
    no: Sequence[object],
) -> Question | None:
    """`ask(case, answer)` for a random case of `yes` or `no`, equally likely; `None` if either is empty."""
    if not yes or not no:
        return None
    return ask(pick(yes, rng), "yes") if rng.random() < 0.5 else ask(pick(no, rng), "no")


_FORMS: dict[str, tuple[_Form, ...]] = {
    "attribute": (_attribute, _attribute, _attribute_beside),
    "count": (_count,),
    "existence": (_existence,),
    "comparison": (_more, _bigger, _same),
    "spatial": (_relation, _nearest, _beside, _edge, _edge),
}
