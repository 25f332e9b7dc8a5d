"""Decoding, against searches written from their definitions: the whole text read at each step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import NoRepeatNGramLogitsProcessor

from tests.tiny import tiny_lm
from trainables.models import decoding
from trainables.models.decoding import Decoding, decode
from trainables.models.language_model import LanguageModel, load_language_model

NEVER = -1  # a token that does not occur
IMAGES, LENGTH = 4, 3


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def lm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    kind = str(request.param)
    return talkative(load_language_model(str(tiny_lm(tmp_path_factory.mktemp(kind), kind))))


def talkative(lm: LanguageModel) -> LanguageModel:
    """As drawn, a model hardly looks back and says its last word again, or all are as likely."""
    draw = torch.Generator().manual_seed(0)
    head = torch.nn.Linear(lm.width, len(lm.model.get_input_embeddings().weight), bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.randn(head.weight.shape, generator=draw) / 2)
        for name, tensor in lm.model.base_model.named_parameters():
            if tensor.ndim == 2 and ("h." in name or "layers." in name):
                tensor.mul_(8)
    lm.model.set_output_embeddings(head)
    return lm


@pytest.fixture(scope="module")
def prefix(lm: LanguageModel) -> Tensor:
    return torch.randn(IMAGES, LENGTH, lm.width, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def after(lm: LanguageModel, prefix: Tensor, words: list[list[int]]) -> Tensor:
    """Log-probabilities after one prefix (1, k, d) and R equally long texts: (R, V)."""
    ids = torch.tensor(words, dtype=torch.int64).view(len(words), -1)
    vectors = torch.cat([prefix.expand(len(words), -1, -1), lm.embed(ids)], dim=1)
    return lm.model(inputs_embeds=vectors, use_cache=False).logits[:, -1].double().log_softmax(-1)


def greedy(
    lm: LanguageModel,
    prefix: Tensor,
    most: int,
    end: int = NEVER,
    choose: Callable[[list[int], Tensor], Tensor] = lambda words, scores: scores,
) -> list[int]:
    """The likeliest token, one by one, up to `end`; `choose` may change the scores (1, V)."""
    words: list[int] = []
    while len(words) < most:
        token = int(choose(words, after(lm, prefix, [words])).argmax())
        if token == end:
            break
        words.append(token)
    return words


def repeats(words: list[int], token: int, n: int) -> bool:
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return tuple([*words, token][-n:]) in grams


def beams(
    lm: LanguageModel,
    prefix: Tensor,
    width: int,
    end: int,
    most: int,
    power: float = 1.0,
    no_repeat: int = 0,
) -> list[int]:
    """ClipCap's beam search of one image, the best sequence of it without its end.

    A beam is (sum of log-probabilities, tokens). An ended one has itself as its only successor.
    """

    def score(beam: tuple[float, list[int]]) -> float:
        return beam[0] / len(beam[1]) ** power

    kept: list[tuple[float, list[int]]] = [(0.0, [])]
    for _ in range(most):
        going = [beam for beam in kept if end not in beam[1]]
        if not going:
            break
        found = [beam for beam in kept if end in beam[1]]
        every = after(lm, prefix, [words for _, words in going])
        for (total, words), scores in zip(going, every, strict=True):
            for token in scores.topk(width + len(words) * bool(no_repeat)).indices.tolist():
                if not (no_repeat and repeats(words, token, no_repeat)):
                    found.append((total + float(scores[token]), [*words, token]))
        kept = sorted(found, key=score, reverse=True)[:width]
    best = max(kept, key=score)[1]
    return best[: best.index(end)] if end in best else best


def ending(lm: LanguageModel, prefix: Tensor, how: Decoding) -> int:
    """A token at which some images end early and others late or never."""
    free = decode(lm, prefix, how, NEVER)
    every = dict.fromkeys(token for row in free for token in row)
    return next(t for t in every if len({len(row) for row in decode(lm, prefix, how, t)}) > 1)


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5])
def test_beams_are_those_of_clipcap(lm: LanguageModel, prefix: Tensor, width: int) -> None:
    how = Decoding("beam", width, max_tokens=7)
    end = ending(lm, prefix, how)
    expected = [beams(lm, one[None], width, end, 7) for one in prefix]
    assert decode(lm, prefix, how, end) == expected


@pytest.mark.parametrize("power", [0.0, 0.6, 1.0, 2.0])
def test_the_length_penalty_is_the_power_of_the_length(
    lm: LanguageModel, prefix: Tensor, power: float
) -> None:
    # As many beams as there are tokens leave nothing out of two steps.
    one = prefix[:1]
    first = after(lm, one, [[]])[0]  # (V,)
    size = len(first)
    second = after(lm, one, [[token] for token in range(size)])  # (V, V)
    ranked = first.argsort(descending=True).tolist()
    for end in (ranked[1], ranked[-1]):
        every = (first[:, None] + second) / 2**power
        every[end] = first[end]  # (end, anything) is the text of one token
        token, following = divmod(int(every.argmax()), size)
        expected = [] if token == end else [token, following]
        how = Decoding("beam", size, length_penalty=power, max_tokens=2)
        assert decode(lm, one, how, end) == [[t for t in expected if t != end]]


def test_longer_powers_make_longer_captions(lm: LanguageModel, prefix: Tensor) -> None:
    end = ending(lm, prefix, Decoding("beam", 4, max_tokens=7))
    totals = []
    for power in (0.0, 0.3, 1.8):
        how = Decoding("beam", 4, length_penalty=power, max_tokens=7)
        found = decode(lm, prefix, how, end)
        assert found == [beams(lm, one[None], 4, end, 7, power) for one in prefix]
        totals.append(sum(map(len, found)))
    assert totals == sorted(totals)
    assert totals[0] < totals[-1]


def test_greedy_is_the_likeliest_token_one_by_one(lm: LanguageModel, prefix: Tensor) -> None:
    how = Decoding("greedy", max_tokens=9)
    end = ending(lm, prefix, how)
    expected = [greedy(lm, one[None], 9, end) for one in prefix]
    assert decode(lm, prefix, how, end) == expected
    assert decode(lm, prefix, Decoding("beam", 1, max_tokens=9), end) == expected


@pytest.mark.parametrize("how", [Decoding("greedy"), Decoding("beam", 3)], ids=lambda h: h.kind)
def test_an_image_says_the_same_alone_and_among_others(
    lm: LanguageModel, prefix: Tensor, how: Decoding, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = Decoding(how.kind, how.beams, max_tokens=8)
    end = ending(lm, prefix, how)
    alone = [decode(lm, one[None], how, end)[0] for one in prefix]
    assert decode(lm, prefix, how, end) == alone
    assert decode(lm, prefix.flip(0), how, end) == alone[::-1]
    monkeypatch.setattr(decoding, "ROWS", 6)  # so few images in one pass
    assert decode(lm, prefix, how, end) == alone


@pytest.mark.parametrize("n", [1, 2, 3])
def test_no_repeated_ngram_is_that_of_transformers(
    lm: LanguageModel, prefix: Tensor, n: int
) -> None:
    rule = NoRepeatNGramLogitsProcessor(n)

    def forbid(words: list[int], scores: Tensor) -> Tensor:
        return rule(torch.tensor([words], dtype=torch.int64), scores)

    expected = [greedy(lm, one[None], 16, choose=forbid) for one in prefix]
    how = Decoding("greedy", max_tokens=16, no_repeat_ngram=n)
    assert decode(lm, prefix, how, NEVER) == expected
    free = decode(lm, prefix, Decoding("greedy", max_tokens=16), NEVER)
    assert n == 3 or free != expected  # it had something to forbid


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("kind", ["beam", "nucleus"])
def test_no_kind_of_search_says_an_ngram_twice(
    lm: LanguageModel, prefix: Tensor, kind: Any, n: int
) -> None:
    how = Decoding(kind, 3, top_p=0.5, max_tokens=8, no_repeat_ngram=n)
    end = ending(lm, prefix, how)
    found = decode(lm, prefix, how, end)
    for words in found:
        assert not any(repeats(words[:at], words[at], n) for at in range(len(words)))
    if kind == "beam":
        assert found == [beams(lm, one[None], 3, end, 8, 1.0, n) for one in prefix]


class Fixed:
    """A language model that finds the same tokens likely whatever it has read."""

    def __init__(self, *chances: float) -> None:
        self.logits = torch.tensor(chances).log()

    def after(self, cache: Any = None, **given: Tensor) -> tuple[Tensor, Any]:
        (read,) = given.values()
        return self.logits.expand(len(read), -1), cache


def drawn(lm: Any, how: Decoding, seeds: int = 20, end: int = NEVER) -> list[list[int]]:
    """What 200 images say with each of the seeds."""
    found = []
    for seed in range(seeds):
        again = Decoding(**{**vars(how), "seed": seed})
        found += decode(lm, torch.zeros(200, 1, 4), again, end)
    return found


def frequencies(rows: list[list[int]], at: int, size: int) -> Tensor:
    return torch.bincount(torch.tensor([row[at] for row in rows]), minlength=size) / len(rows)


@pytest.mark.parametrize(
    ("top_p", "temperature", "expected"),
    [
        (1.0, 1.0, [0.1, 0.4, 0.2, 0.25, 0.05]),
        (0.6, 1.0, [0, 0.4 / 0.65, 0, 0.25 / 0.65, 0]),
        (0.8, 1.0, [0, 0.4 / 0.85, 0.2 / 0.85, 0.25 / 0.85, 0]),
        (1e-6, 1.0, [0, 1, 0, 0, 0]),
        (1.0, 0.5, [0.01 / 0.275, 0.16 / 0.275, 0.04 / 0.275, 0.0625 / 0.275, 0.0025 / 0.275]),
        (1.0, 1e-3, [0, 1, 0, 0, 0]),
    ],
)
def test_nucleus_draws_each_token_of_the_smallest_set_as_often_as_it_is_likely(
    top_p: float, temperature: float, expected: list[float]
) -> None:
    how = Decoding("nucleus", top_p=top_p, temperature=temperature, max_tokens=2)
    rows = drawn(Fixed(0.1, 0.4, 0.2, 0.25, 0.05), how)
    chances = torch.tensor(expected)
    spread = (chances * (1 - chances) / len(rows)).sqrt()
    for at in (0, 1):
        gap = (frequencies(rows, at, 5) - chances).abs()
        assert (gap <= 4 * spread).all(), gap  # exactly 0 where a token is outside


def test_the_nucleus_is_of_what_may_still_be_said() -> None:
    # Token 0 is said first or forbidden after: then 1 alone has 0.75 of the rest.
    how = Decoding("nucleus", top_p=0.7, max_tokens=2, no_repeat_ngram=1)
    rows = [row for row in drawn(Fixed(0.6, 0.3, 0.04, 0.03, 0.03), how) if row[0] == 0]
    assert len(rows) > 1000
    assert {row[1] for row in rows} == {1}


def test_nucleus_of_one_token_is_greedy(lm: LanguageModel, prefix: Tensor) -> None:
    one = decode(lm, prefix, Decoding("nucleus", top_p=1e-6, max_tokens=8), NEVER)
    assert one == decode(lm, prefix, Decoding("greedy", max_tokens=8), NEVER)


def test_nucleus_draws_from_the_model_after_the_words_so_far(
    lm: LanguageModel, prefix: Tensor
) -> None:
    how = Decoding("nucleus", top_p=0.3, max_tokens=6, seed=5)
    for row, one in zip(decode(lm, prefix, how, NEVER), prefix, strict=True):
        for at, token in enumerate(row):
            scores = after(lm, one[None], [row[:at]])[0]
            likelier = scores[scores > scores[token]].exp().sum()
            assert likelier < 0.3 + 1e-6


def test_equal_seeds_give_equal_words_and_others_do_not(lm: LanguageModel, prefix: Tensor) -> None:
    def say(seed: int) -> list[list[int]]:
        return decode(lm, prefix, Decoding("nucleus", max_tokens=8, seed=seed), NEVER)

    state = torch.get_rng_state()
    assert say(1) == say(1) != say(2)
    assert torch.equal(torch.get_rng_state(), state)  # nobody else's stream


@pytest.mark.parametrize("kind", ["greedy", "nucleus", "beam"])
def test_the_end_token_ends_and_is_kept_where_it_belongs_to_the_words(
    lm: LanguageModel, prefix: Tensor, kind: Any
) -> None:
    how = Decoding(kind, 3, top_p=1e-6, max_tokens=8)
    end = ending(lm, prefix, how)
    found, kept = (decode(lm, prefix, how, end, keep_end=keep) for keep in (False, True))
    assert any(len(row) < 8 for row in found)
    for row, with_end in zip(found, kept, strict=True):
        assert end not in row
        assert with_end in (row, [*row, end])
        assert (with_end == row) == (len(row) == 8)


@pytest.mark.parametrize("kind", ["greedy", "nucleus", "beam"])
@pytest.mark.parametrize("most", [1, 5])
def test_never_more_tokens_than_asked_for(
    lm: LanguageModel, prefix: Tensor, kind: Any, most: int
) -> None:
    found = decode(lm, prefix, Decoding(kind, 3, max_tokens=most), NEVER)
    assert [len(row) for row in found] == [most] * IMAGES


def test_an_end_at_once_is_an_empty_caption(lm: LanguageModel, prefix: Tensor) -> None:
    first = int(after(lm, prefix[:1], [[]]).argmax())
    assert decode(lm, prefix[:1], Decoding("greedy"), first) == [[]]
