"""True and false declarative captions of a scene, for pre-training."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from tasks.mini.clauses import (
    NUMBERS,
    VALUES,
    Clause,
    Count,
    Exists,
    Listing,
    Located,
    Noun,
    Predicate,
    Related,
    caption_words,
)
from tasks.mini.world import IMAGE_SIZE, RELATIONS, Scene, Thing, pick, relation_holds

__all__ = ["caption", "caption_words", "false_caption", "falsify", "join", "true_clauses"]

MIN_WORDS, MAX_WORDS = 6, 22

_TRIES = 12  # at most this many clauses are drawn for one caption
# Each kind is drawn as often as it is listed.
_KINDS = (
    *("exists", "exists", "count", "count", "related", "related"),
    *("located", "predicate", "predicate", "listing"),
)


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """A true caption of 6 to 22 lower-case words, without punctuation."""
    return join(true_clauses(scene, rng), rng)


def false_caption(scene: Scene, rng: np.random.Generator) -> str:
    """A caption like those of `caption`, made false by changing one content word of one clause."""
    while True:
        clauses = falsify(true_clauses(scene, rng), scene, rng)
        if clauses is not None:
            return join(clauses, rng)


def join(clauses: Iterable[Clause], rng: np.random.Generator) -> str:
    """The clauses joined into one sentence."""
    return " and ".join(clause.text(rng) for clause in clauses)


def true_clauses(scene: Scene, rng: np.random.Generator) -> tuple[Clause, ...]:
    """Clauses that hold, mostly one or two. Joined they have `MIN_WORDS` to `MAX_WORDS` words in any wording."""
    draw = rng.random()
    target = 1 if draw < 0.45 else 2 if draw < 0.9 else 3
    chosen: list[Clause] = []
    shortest = longest = 0
    for _ in range(_TRIES):
        if len(chosen) >= target and shortest >= MIN_WORDS:
            break
        clause = _true_clause(scene, rng)
        if clause is None or clause in chosen:
            continue
        lengths = [wording.count(" ") + 1 + bool(chosen) for wording in clause.wordings()]
        if longest + max(lengths) <= MAX_WORDS:
            chosen.append(clause)
            shortest, longest = shortest + min(lengths), longest + max(lengths)
    if shortest < MIN_WORDS:
        thing = pick(scene.things, rng)
        chosen.append(Exists(Noun(thing.color, thing.shape, thing.size)))
    return tuple(chosen)


def falsify(clauses: tuple[Clause, ...], scene: Scene, rng: np.random.Generator) -> tuple[Clause, ...] | None:
    """The clauses with one content word of one clause changed so that the clause fails; `None` if impossible.

    The kind of word is drawn first, so that relations and numbers change as often as colours. Half of the time
    words that describe something in the scene are preferred: only reading the words together reveals the error.
    """
    present = {word for thing in scene.things for word in (thing.color, thing.shape, thing.size)}
    for k in rng.permutation(len(clauses)).tolist():
        variants = clauses[k].variants()
        order_of_kind = dict(
            zip(sorted({variant.kind for variant in variants}), rng.permutation(6).tolist(), strict=False)
        )
        shuffled = [variants[j] for j in rng.permutation(len(variants)).tolist()]
        preferred = present if rng.random() < 0.5 else set()
        for variant in sorted(
            shuffled, key=lambda variant: (order_of_kind[variant.kind], variant.word not in preferred)
        ):
            if variant.clause.fails(scene):
                return (*clauses[:k], variant.clause, *clauses[k + 1 :])
    return None


def _true_clause(scene: Scene, rng: np.random.Generator) -> Clause | None:
    """A random clause that holds; `None` if the scene allows none of the kind that was drawn."""
    thing = pick(scene.things, rng)
    clause: Clause | None
    match pick(_KINDS, rng):
        case "count":
            clause = _true_count(scene, thing, rng)
        case "related":
            clause = _true_relation(scene, thing, rng)
        case "located":
            vertical, horizontal = pick((("y", "x"), ("y", ""), ("", "x")), rng)
            clause = Located(
                _describe(thing, rng),
                _half(thing.y, ("top", "bottom")) if vertical else None,
                _half(thing.x, ("left", "right")) if horizontal else None,
            )
        case "predicate":
            clause = _true_predicate(scene, thing, rng)
        case "listing":
            nouns = list(dict.fromkeys(Noun(t.color, t.shape) for t in scene.things))
            order = rng.permutation(len(nouns)).tolist()[: 2 + int(rng.random() < 0.4)]
            clause = Listing(tuple(nouns[k] for k in order)) if len(nouns) > 1 else None
        case _:
            clause = Exists(_describe(thing, rng))
    return clause if clause is not None and clause.holds(scene) else None


def _true_count(scene: Scene, thing: Thing, rng: np.random.Generator) -> Count | None:
    nouns = [Noun(color=thing.color), Noun(shape=thing.shape), Noun(size=thing.size)]
    several = [noun for noun in nouns if len(noun.among(scene)) > 1]
    noun = pick(several if several and rng.random() < 0.7 else nouns, rng)
    number = len(noun.among(scene))
    return Count(noun, number) if number in NUMBERS else None


def _true_relation(scene: Scene, thing: Thing, rng: np.random.Generator) -> Related | None:
    other = pick(scene.things, rng)
    relations = [relation for relation in RELATIONS if relation_holds(thing, other, relation)]
    first, second = _describe(thing, rng), _describe(other, rng)
    return Related(first, second, pick(relations, rng)) if relations and first != second else None


def _true_predicate(scene: Scene, thing: Thing, rng: np.random.Generator) -> Predicate | None:
    color, shape, size = thing.color, thing.shape, thing.size
    attribute = pick(tuple(VALUES), rng)
    nouns = {
        "color": [Noun(shape=shape), Noun(size=size, shape=shape), Noun(size=size)],
        "shape": [Noun(color=color), Noun(size=size, color=color), Noun(size=size)],
        "size": [Noun(color=color), Noun(shape=shape), Noun(color=color, shape=shape)],
    }[attribute]
    unique = [noun for noun in nouns if len(noun.among(scene)) == 1]
    return Predicate(pick(unique, rng), attribute, getattr(thing, attribute)) if unique else None


def _describe(thing: Thing, rng: np.random.Generator) -> Noun:
    color, shape, size = thing.color, thing.shape, thing.size
    draw = rng.random()
    if draw < 0.5:
        return Noun(color, shape)
    if draw < 0.75:
        return Noun(color, shape, size)
    return pick(
        (Noun(shape=shape, size=size), Noun(color=color), Noun(color=color, size=size), Noun(shape=shape)),
        rng,
    )


def _half(coordinate: int, names: tuple[str, str]) -> str:
    return names[int(coordinate >= IMAGE_SIZE // 2)]
