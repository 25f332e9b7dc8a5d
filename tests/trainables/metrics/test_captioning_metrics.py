"""Caption metrics against pycocoevalcap's and NLTK's numbers, written-out formulas, odd input."""

from __future__ import annotations

import importlib.util
import math
import sys
import unicodedata
from collections import Counter
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from tests import ROOT
from trainables.errors import ConfigError, DataError
from trainables.files import read_json
from trainables.metrics.captioning import (
    CaptionScores,
    References,
    bleu_of,
    clip_score,
    diversity,
    ref_clip_score,
    score_captions,
    spice,
    why_no_spice,
    words,
)
from trainables.metrics.ngrams import repetition
from trainables.statistics.bootstrap import Bootstrap

DATA = ROOT.parent / "shared" / "data" / "captions193"
FIXTURE = read_json(ROOT / "tests" / "fixtures" / "captions.json")
CAPTIONS = [image["caption"] for image in FIXTURE["images"]]
REFERENCES = [image["references"] for image in FIXTURE["images"]]

# captions193 by pycocoevalcap 1.2 with Java 17: PTBTokenizer().tokenize, then
# Bleu(4).compute_score, Cider().compute_score and Rouge().compute_score; the mean over captions of
# Meteor().compute_score (METEOR 1.5).
MLP = {
    "bleu1": 0.743549,
    "bleu2": 0.581937,
    "bleu3": 0.436669,
    "bleu4": 0.325060,
    "cider_d": 1.212675,
    "rouge_l": 0.551351,
}
TRANSFORMER = {
    "bleu1": 0.755274,
    "bleu2": 0.589286,
    "bleu3": 0.432176,
    "bleu4": 0.313202,
    "cider_d": 1.195193,
    "rouge_l": 0.550048,
}
METEOR = {"mlp": 0.279441, "transformer": 0.274077}
# The numbers known before: from tokens without Java, lower case with ASCII punctuation struck out.
KNOWN = {
    "mlp": {"bleu4": 0.3258, "sentence_bleu4": 0.28668, "rouge_l": 0.552},
    "transformer": {"bleu4": 0.3132, "sentence_bleu4": 0.27376, "rouge_l": 0.550},
}


@pytest.fixture(scope="module")
def fixture_scores() -> CaptionScores:
    return score_captions(CAPTIONS, References(REFERENCES))


@cache
def real_scores(name: str) -> CaptionScores:
    """`captions193` scored, or the test is skipped."""
    if not DATA.is_dir():
        pytest.skip("captions of 193 COCO pictures are not here (../shared/data/captions193)")
    captions = read_json(DATA / f"{name}_map.json")
    references = read_json(DATA / "real_map.json")
    return score_captions(list(captions.values()), References([references[k] for k in captions]))


def test_words_are_those_of_the_penn_treebank_tokenizer() -> None:
    for text, tokens in FIXTURE["tokens"]:
        assert words(text) == tokens


def test_words_know_composed_and_decomposed_letters_and_no_emoji() -> None:
    assert words("Cafe\u0301 \U0001f436") == words("caf\u00e9") == ["caf\u00e9"]
    assert words("") == words(" \n") == words("... !") == []


@pytest.mark.parametrize(
    "text",
    [
        "बच्चा दौड़ रहा है",  # Hindi
        "বাচ্চা দৌড়াচ্ছে",  # Bengali
        "குழந்தை ஓடுகிறது",  # Tamil
        "كِتَاب جديد",  # Arabic with its vowels
        "שָׁלוֹם עולם",  # Hebrew with its vowels
        "เด็กวิ่ง เร็ว",  # Thai
        "ខ្មែរ ស្អាត",  # Khmer
        "می‌خواهم بروم",  # Persian, with a joiner within a word
    ],
)
def test_words_of_scripts_with_vowel_signs_come_out_whole(text: str) -> None:
    assert words(text) == unicodedata.normalize("NFC", text).split()


@pytest.mark.parametrize("metric", ["cider_d", "rouge_l"])
def test_each_value_is_pycocoevalcaps(fixture_scores: CaptionScores, metric: str) -> None:
    assert fixture_scores.values[metric].tolist() == pytest.approx(FIXTURE[metric], abs=1e-9)
    assert fixture_scores.values[metric].dtype == torch.float64


def test_corpus_bleu_is_pycocoevalcaps(fixture_scores: CaptionScores) -> None:
    assert bleu_of(fixture_scores.bleu.sum(0)).tolist() == pytest.approx(FIXTURE["bleu"], abs=1e-9)
    summary = fixture_scores.summary()
    assert [summary[f"bleu{n}"] for n in range(1, 5)] == pytest.approx(FIXTURE["bleu"], abs=1e-9)
    assert summary["cider_d"] == pytest.approx(np.mean(FIXTURE["cider_d"]))


@pytest.mark.parametrize(("name", "expected"), [("mlp", MLP), ("transformer", TRANSFORMER)])
def test_193_real_captions_are_scored_as_pycocoevalcap_does(
    name: str, expected: dict[str, float]
) -> None:
    summary = real_scores(name).summary()
    assert {metric: summary[metric] for metric in expected} == pytest.approx(expected, abs=1e-6)
    assert {m: summary[m] for m in KNOWN[name]} == pytest.approx(KNOWN[name], abs=1e-3)
    assert summary["meteor_stem"] == pytest.approx(METEOR[name], abs=0.01)


def test_sentence_bleu_and_meteor_are_nltks(fixture_scores: CaptionScores) -> None:
    from nltk.stem.porter import PorterStemmer
    from nltk.translate.bleu_score import SmoothingFunction, corpus_bleu
    from nltk.translate.meteor_score import meteor_score

    method, wordnet = SmoothingFunction().method1, SimpleNamespace(synsets=lambda word: [])
    for row, (caption, own) in enumerate(zip(CAPTIONS, REFERENCES, strict=True)):
        ours, theirs = words(caption), [words(text) for text in own]
        bleu = corpus_bleu([theirs], [ours], smoothing_function=method)
        assert float(fixture_scores.values["sentence_bleu4"][row]) == pytest.approx(bleu)
        if ours not in theirs:
            meteor = meteor_score(
                theirs,
                ours,
                stemmer=PorterStemmer(),
                wordnet=wordnet,
                alpha=0.85,
                beta=0.2,
                gamma=0.6,
            )
            assert float(fixture_scores.values["meteor_stem"][row]) == pytest.approx(meteor)


def runs(text: str, n: int) -> Counter[str]:
    tokens = words(text)
    return Counter(" ".join(tokens[k : k + n]) for k in range(len(tokens) - n + 1))


def plain_cider(captions: list[str], references: list[list[str]], n: int) -> list[float]:
    """The paper's formula for runs of n words, on dense vectors."""
    every = [captions, *references]
    names = sorted({run for own in every for text in own for run in runs(text, n)})
    seen = [{run for text in own for run in runs(text, n)} for own in references]
    idf = [math.log(len(seen) / max(1, sum(name in own for own in seen))) for name in names]

    def cosine(one: str, other: str) -> float:
        counts = [runs(text, n) for text in (one, other)]
        a, b = (np.array([count[name] for name in names]) * idf for count in counts)
        scale = np.linalg.norm(a) * np.linalg.norm(b)
        return float(a @ b / scale) if scale else 0.0

    pairs = zip(captions, references, strict=True)
    return [float(np.mean([cosine(caption, text) for text in own])) for caption, own in pairs]


def test_plain_cider_is_the_papers_formula(fixture_scores: CaptionScores) -> None:
    each = [plain_cider(CAPTIONS, REFERENCES, n) for n in range(1, 5)]
    expected = 10 * np.mean(each, axis=0)
    assert fixture_scores.values["cider"].tolist() == pytest.approx(expected.tolist())


def test_cider_d_punishes_what_plain_cider_rewards() -> None:
    """A caption that says its rare word again, and one of another length."""
    every = [["a cat naps"], ["a dog barks"], ["a bird sings"]]
    scores = score_captions(["a cat naps naps naps", "a dog barks", ""], References(every), False)
    clipped, plain = scores.values["cider_d"], scores.values["cider"]
    assert clipped[0] < plain[0]
    assert clipped[1] == pytest.approx(plain[1]) == pytest.approx(7.5)  # it has no run of 4 words


def test_longest_common_subsequence_of_random_words() -> None:
    random = np.random.default_rng(0)
    for _ in range(30):
        ours, theirs = (list(random.choice(list("abcd"), random.integers(1, 90))) for _ in "ab")
        table = np.zeros((len(ours) + 1, len(theirs) + 1), int)
        for i, j in np.ndindex(len(ours), len(theirs)):
            best = max(table[i, j + 1], table[i + 1, j])
            table[i + 1, j + 1] = table[i, j] + 1 if ours[i] == theirs[j] else best
        precision, recall = table[-1, -1] / len(ours), table[-1, -1] / len(theirs)
        expected = 2.44 * precision * recall / (recall + 1.44 * precision) if table[-1, -1] else 0.0
        scores = score_captions([" ".join(ours)], References([[" ".join(theirs)]]), False)
        assert float(scores.values["rouge_l"]) == pytest.approx(expected)


def test_one_caption_against_bleu_by_hand() -> None:
    """4 words of which 3 match, then 2 pairs of 3; closest of lengths 3 and 5 is the shorter."""
    scores = score_captions(
        ["one two three four"], References([["one two three", "one two three five six"]])
    )
    assert scores.bleu.tolist() == [[3, 2, 1, 0, 4, 3, 2, 1, 4, 3]]
    assert bleu_of(scores.bleu)[0].tolist() == pytest.approx(
        [3 / 4, math.sqrt(3 / 4 * 2 / 3), (3 / 4 * 2 / 3 / 2) ** (1 / 3), 0]
    )
    shorter = score_captions(["one two"], References([["one two three"]]))
    assert bleu_of(shorter.bleu)[0, :2].tolist() == pytest.approx([math.exp(1 - 3 / 2)] * 2)
    smoothed = (3 / 4 * 2 / 3 * 1 / 2 * 0.1) ** (1 / 4)
    assert float(scores.values["sentence_bleu4"]) == pytest.approx(smoothed)


def test_an_empty_caption_scores_nothing_and_an_equal_one_everything() -> None:
    every = [["a cat naps on a mat"], ["a dog barks at the moon", "a dog"], ["?!", "birds sing"]]
    scores = score_captions(["", "A dog barks at the moon.", "birds"], References(every))
    for name, values in scores.values.items():
        assert values[0] == 0, name
        assert values.isfinite().all(), name
    assert float(scores.values["rouge_l"][1]) == float(scores.values["meteor_stem"][1]) == 1
    assert float(scores.values["sentence_bleu4"][1]) == pytest.approx(1)
    assert np.isfinite(bleu_of(scores.bleu)).all()
    assert score_captions([""], References([[""]])).summary()["bleu4"] == 0


def test_one_image_has_no_rare_words() -> None:
    values = score_captions(["a cat"], References([["a cat", "the cat"]])).values
    assert float(values["cider"]) == float(values["cider_d"]) == 0
    assert float(values["rouge_l"]) == 1


def test_wrong_lengths_are_named() -> None:
    with pytest.raises(DataError, match="`references`, image 1: must be at least 1 text"):
        References([["a cat"], []])
    with pytest.raises(DataError, match="image 0: must be a list of texts, got 'a cat'"):
        References(["a cat"])
    with pytest.raises(DataError, match="at least 1 image"):
        References([])
    with pytest.raises(DataError, match="one for each of 1 images, got 2"):
        score_captions(["a", "b"], References([["a"]]))


def test_meteor_is_left_out_on_demand() -> None:
    scores = score_captions(["a cat"], References([["a cat"]]), meteor=False)
    assert set(scores.values) == {"cider_d", "cider", "rouge_l", "sentence_bleu4", "repetition"}


def test_repetition_and_diversity_by_hand() -> None:
    assert repetition(list("ababab")) == pytest.approx(3 / 5)  # a b, b a, and again
    assert repetition(["a"]) == repetition([]) == 0
    found = diversity(["a dog runs", "A dog runs.", "a cat"])
    assert found == pytest.approx(
        {
            "distinct_1": 4 / 8,
            "distinct_2": 3 / 5,
            "distinct_captions": 2 / 3,
            "mean_words": 8 / 3,
        }
    )
    assert set(diversity([]).values()) == {0}


def test_clip_scores_by_hand() -> None:
    images = torch.tensor([[2.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    texts = torch.tensor([[3.0, 4.0], [-1.0, 0.0], [0.0, 5.0]])
    assert clip_score(images, texts).tolist() == pytest.approx([2.5 * 0.6, 0, 0])
    refs = torch.tensor([[-3.0, -4.0], [-1.0, 0.0], [4.0, 3.0], [0.0, 1.0]])
    rows = torch.tensor([0, 1, 0, 2])
    both = ref_clip_score(images, texts, refs, rows)
    best = 0.96  # of image 0's two references; the other one points away
    assert both.tolist() == pytest.approx([2 * 1.5 * best / (1.5 + best), 0, 0])
    assert both.dtype == torch.float64
    with pytest.raises(DataError, match="row `2` of the images has none"):
        ref_clip_score(images, texts, refs[:3], rows[:3])


@pytest.mark.parametrize("each", [1, 3])
def test_bootstrap_sums_equal_a_loop(each: int) -> None:
    random = np.random.default_rng(0)
    clusters = random.permutation(np.repeat(np.arange(11), each))
    values = random.random((len(clusters), 4))
    boot = Bootstrap(11, resamples=70, seed=3)  # more than a chunk
    fast = boot.sums(torch.from_numpy(values), torch.from_numpy(clusters))
    assert fast.shape == (70, 4)
    for counts, got in zip(boot.counts, fast, strict=True):
        assert got == pytest.approx(np.repeat(values, counts[clusters], axis=0).sum(0))


def test_the_difference_of_two_real_captioners_is_not_shown() -> None:
    ours, theirs = real_scores("mlp").bleu, real_scores("transformer").bleu
    boot, images = Bootstrap(len(ours), resamples=2000), torch.arange(len(ours))
    value = float((bleu_of(ours.sum(0)) - bleu_of(theirs.sum(0)))[3])
    replicates = [bleu_of(boot.sums(counts, images))[:, 3] for counts in (ours, theirs)]
    found = boot.difference(value, *replicates, len(ours))
    assert value == pytest.approx(0.3258 - 0.3132, abs=1e-3)
    assert (found.low, found.high) == pytest.approx((-0.033, 0.051), abs=0.01)
    assert found.p > 0.2


def test_spice_says_why_it_is_absent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert "no `java`" in why_no_spice()
    with pytest.raises(ConfigError, match="SPICE needs Java"):
        spice(["a cat"], [["a cat"]])
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/java")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert why_no_spice() == "SPICE needs `pip install cliptune[spice]`."
    package = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: package)
    assert "`stanford-corenlp-3.6.0.jar`" in why_no_spice()


def test_spice_hands_over_words_and_takes_f_scores(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With pycocoevalcap's class played by one that knows the form of its answer."""

    class Spice:
        def compute_score(self, theirs: dict, ours: dict) -> tuple[float, list]:
            assert theirs == {0: ["a cat", "the cat"], 1: ["a dog"]}
            assert ours == {0: ["a cat"], 1: ["dogs"]}
            return 0.25, [{"All": {"f": 0.5, "pr": 1.0}}, {"All": {"f": math.nan}}]

    module = ModuleType("pycocoevalcap.spice.spice")
    module.Spice = Spice
    monkeypatch.setitem(sys.modules, "pycocoevalcap.spice.spice", module)
    monkeypatch.setitem(sys.modules, "pycocoevalcap.spice", ModuleType("pycocoevalcap.spice"))
    monkeypatch.setitem(sys.modules, "pycocoevalcap", ModuleType("pycocoevalcap"))
    monkeypatch.setattr("trainables.metrics.spice.why_no_spice", lambda: "")
    found = spice(["A cat.", "Dogs"], [["A cat", "the cat!"], ["a dog"]])
    assert found[0] == 0.5
    assert found[1].isnan()
