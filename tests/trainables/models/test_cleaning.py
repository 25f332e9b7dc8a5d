"""Texts as CLIP's own tokenizer cleans them, counted, and part of a store's key."""

from __future__ import annotations

import html
import string
from pathlib import Path

import ftfy
import pytest

from tests.tiny import tiny_clip, tiny_features, tiny_shards, tiny_siglip
from trainables.data.shards import ShardSet
from trainables.features.features import backbone_of
from trainables.features.manifest import features_key
from trainables.features.texts import read_texts
from trainables.files import read_json, write_json
from trainables.models import cleaning
from trainables.models.cleaning import clean, repairs
from trainables.models.load import load_backbone

CASES = {
    "a dog &amp; a cat": "a dog & a cat",
    "a dog &amp;amp; a cat": "a dog & a cat",
    "a dog&#39;s ball": "a dog's ball",
    "\u201ca dog\u2019s ball\u201d": '"a dog\'s ball"',
    "a cafÃ© near the sea": "a café near the sea",
    "a \ufb01re near a house": "a fire near a house",
    "a\u00a0red&nbsp;dog\r\n": "a red dog",
    "&lt;a&gt; dog": "<a> dog",
    "  a   red dog ": "a red dog",
    "A RED dog!": "A RED dog!",
    "": "",
}


def as_openai(text: str) -> str:
    """The beginning of CLIP's own tokenizer."""
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


@pytest.mark.parametrize("text", CASES)
def test_texts_are_mended_as_clips_own_tokenizer_does(text: str) -> None:
    assert clean(text, "openai") == CASES[text] == as_openai(text)
    assert clean(text, "none") == text


def test_what_is_not_looked_at_has_nothing_to_mend() -> None:
    plain = "".join(c for c in string.printable if c.isprintable() and c != "&")
    for text in (plain, *plain, *(2 * c for c in plain), plain[::-1]):
        assert clean(text, "openai") == as_openai(text)


def test_only_repairs_are_counted() -> None:
    assert repairs(CASES, "openai") == 8
    assert repairs(CASES, "none") == 0


def test_canonical_texts_have_no_punctuation_and_no_capitals() -> None:
    assert clean("A_red  Dog&#39;s ball!", "canonicalize") == "a red dogs ball"


def test_it_is_on_for_clips_and_leaves_siglips_alone(tmp_path: Path) -> None:
    clip = load_backbone(str(tiny_clip(tmp_path / "clip")))
    ids = [clip.tokenize([text])[0].ids.tolist() for text in ("a dog&#39;s ball", "a dog's ball")]
    assert ids[0] == ids[1]
    assert load_backbone(str(tmp_path / "clip"), clean_text=False).cleaning == "none"
    assert load_backbone(str(tiny_siglip(tmp_path / "siglip"))).cleaning == "none"


def test_it_is_part_of_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip, shards = tiny_clip(tmp_path / "clip"), ShardSet.open(tiny_shards(tmp_path / "shards"))
    on, off = (load_backbone(str(clip), clean_text=value) for value in (True, False))
    keys = [features_key(one, shards) for one in (on, off)]
    installed = cleaning.metadata.version
    other = {"ftfy": "0"}
    monkeypatch.setattr(cleaning.metadata, "version", lambda n: other.get(n) or installed(n))
    keys.append(features_key(on, shards))
    assert len(set(keys)) == 3


def test_a_store_counts_them_and_its_own_way_is_kept(tmp_path: Path) -> None:
    clip = tiny_clip(tmp_path / "clip")
    rows = [{"id": "1", "captions": list(CASES), "class_name": None, "sha256": "00"}]
    assert read_texts(load_backbone(str(clip)), rows).repaired == 8
    store = tiny_features(tmp_path / "store", clip=clip)
    assert backbone_of(store).cleaning == "none"  # made before, or without
    manifest = read_json(store / "manifest.json")
    write_json(store / "manifest.json", manifest | {"cleaning": cleaning.versions("openai")})
    assert backbone_of(store).cleaning == "openai"
