"""A small CLIP-style BPE: base captions in, a `CLIPTokenizer` out.

All 256 bytes, alone and word-final, head the vocabulary, so that any text can be spelled; merges
learnt on the captions follow, then plain syllables. A word that the base domain never uses falls
apart into syllables and letters that mean nothing to the tiny CLIP yet.
"""

import json
from collections.abc import Iterable
from itertools import product
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

START, END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"
CONSONANTS, VOWELS = "bcdfghjklmnpqrstvwxyz", "aeiou"
POSITIONS = 77


def build_tokenizer(captions: Iterable[str]) -> "CLIPTokenizer":
    """Learn the merges, then lay the vocabulary out as CLIP does: bytes, merges, the two marks."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    blank = CLIPTokenizer().backend_tokenizer
    learner = Tokenizer(models.BPE(end_of_word_suffix=WORD_END))
    learner.normalizer = blank.normalizer
    learner.pre_tokenizer = blank.pre_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        min_frequency=2,
        initial_alphabet=alphabet,
        end_of_word_suffix=WORD_END,
        show_progress=False,
    )
    learner.train_from_iterator(captions, trainer)
    learnt = [(a, b) for a, b in json.loads(learner.to_str())["model"]["merges"]]
    merges = list(dict.fromkeys([*learnt, *_syllables()]))
    pieces = [*alphabet, *(letter + WORD_END for letter in alphabet)]
    pieces += [*(a + b for a, b in merges), START, END]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=POSITIONS)


def _syllables() -> list[tuple[str, str]]:
    """A consonant and a vowel, inside a word or at its end."""
    return [(c, v + end) for c, v, end in product(CONSONANTS, VOWELS, ("", WORD_END))]
