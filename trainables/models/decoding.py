"""From a prefix to words: greedy, nucleus and beam search, many images at a time.

Flows in: a language model and prefix vectors (B, k, d). Flows out: token ids of each image, without
the end token. Keys and values of what was read are kept, so each step costs one position a row; an
image whose words have ended leaves the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from trainables.models.language_model import LanguageModel

ROWS = 256  # beams in one pass: images times beams


@dataclass(frozen=True)
class Decoding:
    """How words are chosen.

    `beam` keeps the K best sequences of an image by score / length ** `length_penalty`. The score
    is the sum of log-probabilities; a sequence that has ended keeps its score. With a penalty of 1
    it is ClipCap's search (Mokady et al. 2021), beam for beam. `nucleus` draws from the smallest
    set of tokens whose probabilities reach `top_p` (Holtzman et al. 2020).
    """

    kind: Literal["greedy", "nucleus", "beam"] = "beam"
    beams: int = 5
    length_penalty: float = 1.0
    top_p: float = 0.9
    temperature: float = 1.0
    max_tokens: int = 67
    no_repeat_ngram: int = 0  # no sequence of so many tokens occurs twice; 0: it may
    seed: int = 0  # of nucleus


def decode(
    lm: LanguageModel, prefix: Tensor, how: Decoding, end_token: int, keep_end: bool = False
) -> list[list[int]]:
    """The tokens after each of the B prefixes (B, k, d), up to `end_token`. With `keep_end` the end
    token is one of them, for an end that is a full stop."""
    beams = how.beams if how.kind == "beam" else 1
    search = _Nucleus(lm, how, end_token) if how.kind == "nucleus" else _Beams(lm, how, end_token)
    found: list[list[int]] = []
    for part in prefix.split(max(1, ROWS // beams)):
        found += search(part)
    ends = [ids.index(end_token) if end_token in ids else len(ids) for ids in found]
    return [ids[: end + keep_end] for ids, end in zip(found, ends, strict=True)]


class _Search:
    """The part that both searches share: read the prefix once, then a token a step."""

    def __init__(self, lm: LanguageModel, how: Decoding, end_token: int) -> None:
        self.lm, self.how, self.end_token = lm, how, end_token
        self.cache: Any = None

    def read(self, prefix: Tensor) -> Tensor:
        """Log-probabilities of the first token: (B, V)."""
        logits, self.cache = self.lm.after(inputs_embeds=prefix)
        return self._log_probabilities(logits)

    def step(self, tokens: Tensor) -> Tensor:
        """Log-probabilities after one more token (R,) of each row: (R, V)."""
        logits, self.cache = self.lm.after(self.cache, input_ids=tokens[:, None])
        return self._log_probabilities(logits)

    def _log_probabilities(self, logits: Tensor) -> Tensor:
        return (logits / self.how.temperature).log_softmax(-1)

    def forbid(self, scores: Tensor, words: Tensor) -> Tensor:
        """`scores` (R, V) with -inf where a token would repeat an n-gram of `words` (R, T)."""
        n = self.how.no_repeat_ngram
        if n == 0 or words.shape[1] < n:
            return scores
        grams = words.unfold(1, n, 1)  # (R, T - n + 1, n)
        same = (grams[..., :-1] == words[:, None, words.shape[1] - n + 1 :]).all(-1)
        banned = torch.zeros_like(scores).scatter_add_(1, grams[..., -1], same.to(scores.dtype))
        return scores.masked_fill(banned > 0, -torch.inf)


class _Beams(_Search):
    """Beam search; one beam is greedy search."""

    @torch.no_grad()
    def __call__(self, prefix: Tensor) -> list[list[int]]:
        """The best sequence of each image, which may hold tokens behind its end."""
        images, device = len(prefix), prefix.device
        beams = self.how.beams if self.how.kind == "beam" else 1
        sums, tokens = self.read(prefix).topk(beams)  # (B, K) both
        self.cache.batch_repeat_interleave(beams)
        words = tokens[..., None]  # (B, K, 1)
        lengths = torch.ones(images, beams, device=device)
        ended = tokens == self.end_token
        best: list[list[int]] = [[] for _ in range(images)]
        left = torch.arange(images)  # the images of the batch
        for _ in range(1, self.how.max_tokens):
            over = ended.all(1).cpu()
            if over.any():
                self._finish(best, left[over], words[over], sums[over] / self.norm(lengths[over]))
                if over.all():
                    return best
                go_on = (~over).to(device)
                rows = go_on.repeat_interleave(beams).nonzero()[:, 0]
                self.cache.batch_select_indices(rows)
                left = left[~over]
                words, sums, lengths, ended = (x[go_on] for x in (words, sums, lengths, ended))
            words, sums, lengths, ended = self._advance(words, sums, lengths, ended)
        self._finish(best, left, words, sums / self.norm(lengths))
        return best

    def norm(self, lengths: Tensor) -> Tensor:
        return lengths**self.how.length_penalty

    def _advance(
        self, words: Tensor, sums: Tensor, lengths: Tensor, ended: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One token more for all beams that go on; the K best of each image."""
        images, beams, done = words.shape
        scores = self.step(words[..., -1].flatten())  # (B K, V)
        scores = self.forbid(scores, words.flatten(0, 1))
        # No more than the K best of a beam can be among the K best of its image.
        top, tokens = (x.view(images, beams, beams) for x in scores.topk(beams))
        stays = ended[..., None]  # an ended beam has one successor: itself
        alone = torch.arange(beams, device=words.device) == 0
        top = torch.where(stays, torch.where(alone, 0.0, -torch.inf), top)
        tokens = torch.where(stays, self.end_token, tokens)
        lengths = lengths + ~ended
        total = sums[..., None] + top  # (B, K, K)
        ranked = (total / self.norm(lengths)[..., None]).flatten(1)
        chosen = ranked.topk(beams).indices  # (B, K)
        source = chosen // beams
        self._reorder(source)
        words = words.gather(1, source[..., None].expand(-1, -1, done))
        tokens = tokens.flatten(1).gather(1, chosen)
        return (
            torch.cat([words, tokens[..., None]], dim=2),
            total.flatten(1).gather(1, chosen),
            lengths.gather(1, source),
            ended.gather(1, source) | (tokens == self.end_token),
        )

    def _reorder(self, source: Tensor) -> None:
        images, beams = source.shape
        first = torch.arange(images, device=source.device)[:, None] * beams
        rows = (first + source).flatten()
        if not torch.equal(rows, torch.arange(len(rows), device=rows.device)):
            self.cache.reorder_cache(rows)

    @staticmethod
    def _finish(best: list[list[int]], images: Tensor, words: Tensor, scores: Tensor) -> None:
        winners = words[torch.arange(len(images)), scores.argmax(1).cpu()]
        for image, ids in zip(images.tolist(), winners.tolist(), strict=True):
            best[image] = ids


class _Nucleus(_Search):
    """Sampling from the likeliest tokens. Equal seeds and batches give equal words."""

    def __init__(self, lm: LanguageModel, how: Decoding, end_token: int) -> None:
        super().__init__(lm, how, end_token)
        self.draw = torch.Generator().manual_seed(how.seed)

    @torch.no_grad()
    def __call__(self, prefix: Tensor) -> list[list[int]]:
        words = self._choose(self.read(prefix))[:, None]  # (B, T)
        ended = words[:, 0] == self.end_token
        while words.shape[1] < self.how.max_tokens and not ended.all():
            scores = self.forbid(self.step(words[:, -1]), words)
            tokens = self._choose(scores).masked_fill(ended, self.end_token)
            words = torch.cat([words, tokens[:, None]], dim=1)
            ended |= tokens == self.end_token
        found: list[list[int]] = words.tolist()
        return found

    def _choose(self, scores: Tensor) -> Tensor:
        """A token (R,) for each row of log-probabilities (R, V), drawn from the nucleus of the
        tokens that are not forbidden."""
        chances, tokens = scores.softmax(-1).sort(descending=True)
        before = chances.cumsum(1) - chances  # of all likelier tokens
        inside = before < self.how.top_p
        chances = chances * inside
        at = (
            torch.rand(len(scores), 1, generator=self.draw).to(scores.device)
            * chances.sum(1)[:, None]
        )
        place = (chances.cumsum(1) <= at).sum(1, keepdim=True)
        return tokens.gather(1, place.minimum(inside.sum(1, keepdim=True) - 1))[:, 0]
