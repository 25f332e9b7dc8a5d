"""Say what a scene shows: a `Scene` in, five sentences by five different people out.

A domain has a vocabulary (which words name a concept) and five annotators (what a person notices,
in which order, in which kind of sentence). The shifted domain changes both.
"""

import random
import re
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean as mean

from pipelines.demo.lexicon import VOCABULARIES, Annotator, Vocabulary
from pipelines.demo.scenes import Kind, Scene, Thing

CAPTIONS = 5


@dataclass(frozen=True)
class Group:
    """Equal things, spoken of together: "three red balls"."""

    kind: Kind
    count: int
    x: float
    y: float


def captions(scene: Scene) -> list[str]:
    """Five differing sentences; the first annotator of a domain leaves nothing out."""
    vocabulary = VOCABULARIES[scene.domain]
    rng = random.Random(f"words/{scene.grain}")
    said: list[str] = []
    for annotator in vocabulary.annotators:
        sentence = _speak(scene, annotator, vocabulary, rng)
        while sentence in said:
            sentence = _speak(scene, annotator, vocabulary, rng)
        said.append(sentence)
    return said


def tokens(sentence: str) -> list[str]:
    """The words of a sentence, lower case, without punctuation."""
    return re.findall(r"[a-z]+", sentence.lower())


def _speak(scene: Scene, annotator: Annotator, vocabulary: Vocabulary, rng: random.Random) -> str:
    groups = sorted(_groups(scene.things), key=lambda g: _reading_order(g, annotator, scene))
    phrases = [_phrase(group, annotator, vocabulary, rng) for group in groups]
    if annotator.relates and len(groups) > 1:
        relations = vocabulary.relations[_relation(groups[0], groups[1], scene)]
        relation = vocabulary.word(relations, rng)
        phrases[:2] = [f"{phrases[0]} {relation} {phrases[1]}"]
    return rng.choice(annotator.frames).format(
        things=_listed(phrases, vocabulary.joiner),
        ground=vocabulary.word(vocabulary.grounds[scene.ground], rng),
        count=vocabulary.numbers[len(scene.things)],
        noun=vocabulary.things[len(scene.things) > 1],
    )


def _groups(things: Iterable[Thing]) -> list[Group]:
    kinds: dict[Kind, list[Thing]] = {}
    for thing in things:
        kinds.setdefault(thing.kind, []).append(thing)
    return [
        Group(kind, len(same), mean(t.x for t in same), mean(t.y for t in same))
        for kind, same in kinds.items()
    ]


def _reading_order(group: Group, annotator: Annotator, scene: Scene) -> float:
    """Left to right, top to bottom, or the biggest first: people differ."""
    if scene.nested or annotator.order == "size":
        return {"big": 0.0, "medium": 1.0, "small": 2.0}[group.kind.size] + group.x / 10
    return group.x + group.y / 4 if annotator.order == "across" else group.y + group.x / 4


def _relation(first: Group, second: Group, scene: Scene) -> str:
    """How the first stands to the second."""
    if scene.nested:
        return "around"
    across, down = second.x - first.x, second.y - first.y
    if abs(across) >= abs(down):
        return "left" if across > 0 else "right"
    return "above" if down > 0 else "below"


def _phrase(group: Group, annotator: Annotator, vocabulary: Vocabulary, rng: random.Random) -> str:
    """ "a big striped red ball" or "three stars", with as much detail as this person gives."""
    kind = group.kind
    singular, plural = vocabulary.word(vocabulary.shapes[kind.shape], rng)
    words = []
    if kind.size != "medium" and rng.random() < annotator.size:
        words.append(vocabulary.word(vocabulary.sizes[kind.size], rng))
    details = []
    if kind.material != "plain" and rng.random() < annotator.material:
        details.append(vocabulary.word(vocabulary.materials[kind.material], rng))
    if rng.random() < annotator.colour:
        details.append(vocabulary.word(vocabulary.colours[kind.colour], rng))
    words += details if annotator.order != "size" else details[::-1]
    words.append(singular if group.count == 1 else plural)
    if group.count > 1:
        return " ".join([vocabulary.numbers[group.count], *words])
    if not annotator.articles:
        return " ".join(words)
    return " ".join(["an" if words[0][0] in "aeiou" else "a", *words])


def _listed(phrases: list[str], joiner: str) -> str:
    if len(phrases) == 1:
        return phrases[0]
    return f"{', '.join(phrases[:-1])} {joiner} {phrases[-1]}"
