"""The words for the classes: the name in a prompt for `AnnualCrop`, and the template around it.

Flows in: a shipped list's name or a file `{"template": "a photo of a {}.", "names": {...}, "texts":
{...}, "ensemble": false}`, and the classes of the shards. `names` maps a class to its name, `texts`
to a list of whole texts; any key may be left out. Flows out: one name a class, and its texts. A
class that the list does not name is cleaned; its case is kept, as in CoOp (CLIP's tokenizer folds
it anyway).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from trainables.errors import ConfigError, DataError, unknown
from trainables.features.few_shot import check_template
from trainables.files import read_json
from trainables.models.given_texts import ALL

FOLDER = Path(__file__).parent / "words"
DEFAULT = "default"
KEYS = ("template", "names", "texts", "ensemble")
TEMPLATE = "a photo of a {}."
_WORDNET_ID = re.compile(r"n\d{8}")


@dataclass(frozen=True)
class Words:
    """A template and names. `whole`: a shipped list of a whole data set, of which your classes may
    be a part; in a user's own list, a name without a class is a mistake."""

    source: str
    template: str
    names: Mapping[str, str]
    whole: bool = False
    texts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # about a class, whole
    ensemble: bool = False  # the texts count one by one, and not as their mean

    def of(self, classes: Sequence[str]) -> tuple[str, ...]:
        """The words for each of `classes`, in their order."""
        self._check_fit(classes)
        by_words = {_fold(words): words for words in self.names.values()}
        return tuple(
            self.names.get(name) or by_words.get(_fold(name)) or self._clean(name)
            for name in classes
        )

    def texts_of(self, classes: Sequence[str]) -> tuple[tuple[str, ...], ...]:
        """The sentences about each of `classes`; () where there are none of any."""
        by_name = {_fold(name): texts for name, texts in self.texts.items()}
        found = tuple(by_name.get(_fold(name), ()) for name in classes)
        return found if any(found) else ()

    def fitted(self, templates: Sequence[str]) -> Words:
        """These words with a template whose texts came as embeddings; any template will do where
        none came. The default gives way to the only one, or to all of them together."""
        known = {_letters(one): one for one in templates}
        if not templates or _letters(self.template) in known:
            return self
        if self.template == TEMPLATE:
            return replace(self, template=templates[0] if len(templates) == 1 else ALL)
        if self.template == ALL:
            return self
        raise DataError(
            f"`{self.source}`: its template has no embeddings; "
            + unknown("template", self.template, [*templates, ALL])
        )

    def _check_fit(self, classes: Sequence[str]) -> None:
        """A name fits a class of that name, or one that already bears its words."""
        have, folded = set(classes), {_fold(name) for name in classes}
        idle = [
            name
            for name, words in {**{name: name for name in self.texts}, **self.names}.items()
            if name not in have and _fold(words) not in folded
        ]
        if not idle or (self.whole and len(idle) < len(self.names)):
            return
        near = difflib.get_close_matches(_fold(idle[0]), sorted(folded), n=1, cutoff=0.0)
        nearest = next(name for name in classes if _fold(name) == near[0])
        if self.whole:
            raise DataError(
                f"the words `{self.source}` are of other data: none of its {len(self.names)} "
                f"names, such as `{idle[0]}`, is a class here; the nearest is `{nearest}`."
            )
        raise DataError(
            f"`{self.source}`: name `{idle[0]}` fits no class; the nearest is `{nearest}`."
        )

    def _clean(self, name: str) -> str:
        if _WORDNET_ID.fullmatch(name):
            raise DataError(
                f"class `{name}` is a WordNet id, which says nothing in a prompt; give words "
                f'for the classes with `--words FILE`: {{"names": {{"{name}": "..."}}}}.'
            )
        return clean(name)


def _letters(text: str) -> str:
    return "".join(letter for letter in text.casefold() if letter.isalnum() or letter in "{}")


def clean(name: str) -> str:
    """Underscores are blanks, and a name without any is parted as CamelCase: `BenchPress`.

    >>> clean("AnnualCrop"), clean("annual_crop")
    ('Annual Crop', 'annual crop')
    """
    parted = name.replace("_", " ")
    if not re.search(r"\s", parted.strip()):  # "McLaren 12C" is words already
        parted = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", parted)
    return " ".join(parted.split())


def _fold(name: str) -> str:
    return clean(name).casefold()


def shipped() -> list[str]:
    """The data sets that have a list here."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def read_words(name: str) -> Words:
    """A shipped list by its name, or a user's own by its path.

    >>> words = read_words("eurosat")
    >>> words.template, words.of(["AnnualCrop"])
    ('a centered satellite photo of {}.', ('annual crop land',))
    """
    if name in shipped():
        return _words(name, read_json(FOLDER / f"{name}.json"), whole=True)
    if not Path(name).is_file():
        raise ConfigError("`--words`: no such file, and " + unknown("list", name, shipped()))
    return _words(name, read_json(Path(name)), whole=False)


def _words(source: str, value: Any, whole: bool) -> Words:
    if not isinstance(value, dict):
        raise DataError(f'`{source}` must hold {{"template": ..., "names": {{...}}}}.')
    for key in value:
        if key not in KEYS:
            raise DataError(f"`{source}`: " + unknown("key", key, KEYS))
    template = value.get("template", TEMPLATE)
    names = value.get("names", {})
    if not isinstance(template, str):
        raise DataError(f"`{source}`: `template` must be text, got {template!r}.")
    try:
        check_template(template)
    except DataError as error:  # the rule is the draw's; the file is named here
        raise DataError(f"`{source}`: {error}") from None
    if not isinstance(names, dict):
        raise DataError(f"`{source}`: `names` must map classes to words, got {names!r:.40}.")
    for name, words in names.items():
        if not isinstance(words, str) or not words.strip():
            raise DataError(f"`{source}`: the words for `{name}` must be text, got {words!r:.40}.")
    names = {name: " ".join(words.split()) for name, words in names.items()}
    texts, ensemble = _texts(source, value.get("texts", {})), value.get("ensemble", False)
    if not isinstance(ensemble, bool) or (ensemble and not texts):
        raise DataError(
            f"`{source}`: `ensemble` must be true beside `texts`, or false, got {ensemble!r:.40}"
            f"{'' if texts else ' without any'}."
        )
    return Words(source, template, names, whole, texts, ensemble)


def _texts(source: str, texts: Any) -> dict[str, tuple[str, ...]]:
    if not isinstance(texts, dict):
        raise DataError(f"`{source}`: `texts` must map classes to lists, got {texts!r:.40}.")
    for name, own in texts.items():
        if not (
            isinstance(own, list) and own and all(isinstance(t, str) and t.strip() for t in own)
        ):
            raise DataError(
                f"`{source}`: the texts for `{name}` must be a list of text, got {own!r:.40}."
            )
    return {name: tuple(" ".join(text.split()) for text in own) for name, own in texts.items()}
