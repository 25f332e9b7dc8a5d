"""Caption text flows in, the words that caption metrics compare flow out.

coco-caption tokenises with Stanford's PTBTokenizer (Java) in lower case and takes out 17 marks of
punctuation; published BLEU, ROUGE-L and CIDEr are of those words. One pattern here has the rules of
that tokenizer that captions meet. The rules are for English. Other languages are split at their
spaces; a language that writes none (Thai, Chinese) is not split.
"""

from __future__ import annotations

import sys
import unicodedata

import regex  # whose \w has vowel signs and joiners too: without them Hindi falls into letters

# Typographic marks that the Penn Treebank writes in ASCII.
ASCII = str.maketrans(
    {
        "\u2018": "'",  # single quotation marks; the right one is also the apostrophe
        "\u2019": "'",
        "\u201c": '"',
        "\u201d": '"',
        "\u2013": "--",  # dashes, which part words where a hyphen joins them
        "\u2014": "--",
        "\u2026": "...",
        "\u00bd": " 1/2 ",
    }
)
# The other brackets, `-LRB-` in upper case, are on coco-caption's list of punctuation, but its
# tokens are in lower case: brackets stay words in published numbers, so they do here.
BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
PUNCTUATION = set("'\"`.?!,:-;")
PARTED = {
    "cannot": ("can", "not"),
    "gonna": ("gon", "na"),
    "gotta": ("got", "ta"),
    "wanna": ("wan", "na"),
    "gimme": ("gim", "me"),
    "lemme": ("lem", "me"),
    "'tis": ("'t", "is"),
    "'twas": ("'t", "was"),
}
TOKEN = regex.compile(
    r"""
      (?:https?://|www\.)\S*[^\s.,;:!?'")]           # an address
    | [\w.]+@\w+(?:\.\w+)+
    | (?:mr|mrs|ms|dr|st|jr|sr|mt|ft|ave|blvd|rd|vs|etc|prof|gen|capt|lt|sgt|rev|inc|co|ltd|dept
        |ph\.d)\.(?!\w)                               # abbreviations keep their full stop,
    | no\.(?=\s?\d)
    | (?:[^\W\d_]\.)+(?:-\w+|(?!\w))                 # and so do initials: u.s., p., u.k.-based
    | \w+?(?=n't\b) | n't\b                          # is n't
    | '(?:s|re|ve|ll|d|m|tis|twas|em|n'|\d\ds?)(?!\w)
    | \d+:\d+(?=[ap]\.?m\b)                          # 8:30 am
    | (?<![\w'])[-+]?(?:\d*\.)?\d++(?:[.,:/]\d+)*+(?![\w'/-])
    | (?-i:[A-Z]+&[A-Z]+)(?!\w)                      # B&W
    | [^\W_]+(?:(?:[-/_.]|(?<=\d),(?=\d))[^\W_]+    # t-shirt, w/o, t.v
        |(?<=[^\W\d_])'(?!(?:s|re|ve|ll|d|m)\b)[^\W\d_]+)*  # o'clock
    | [@\#][^\W\d_]\w* | </?\w+>
    | [?!]+ | \*+ | _+                               # a run is one token
    | [^\s\U00010000-\U0010ffff]                    # other signs; emoji are left out
    """,
    regex.VERBOSE | regex.IGNORECASE,
)


def words(text: str) -> list[str]:
    """The tokens of one caption, as coco-caption makes them.

    >>> words("A dog's ball, in the park.")
    ['a', 'dog', "'s", 'ball', 'in', 'the', 'park']
    """
    found: list[str] = []
    # An accent may be a letter of its own in one caption and not in another.
    for match in TOKEN.findall(unicodedata.normalize("NFC", text).translate(ASCII)):
        token = sys.intern(match.lower())  # a data set has few distinct words
        if token not in PUNCTUATION:
            found += PARTED.get(token) or (BRACKETS.get(token, token),)
    return found
