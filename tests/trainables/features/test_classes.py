"""Class names in templates: their tokens, their frozen embeddings, and what does not fit."""

from __future__ import annotations

import pytest
import torch

from tests.contract import CLASSES, examples, make
from trainables.errors import ConfigError
from trainables.features.classes import DEFAULT, ENSEMBLE, Classes
from trainables.models.backbone import Backbone
from trainables.models.text_tower import embed_text
from trainables.training.predict import score

NAMES = ("red dog", "boat", "a cat under a bridge")


def unit(x: torch.Tensor) -> torch.Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def test_names_stand_in_the_template(backbone: Backbone) -> None:
    classes = Classes(NAMES, "a photo of {}.")
    assert len(classes) == 3
    for template, text in (("", "a photo of {}."), ("{}.", "{}."), (DEFAULT, "a photo of a {}.")):
        tokens = classes.tokens(backbone, template)
        expected, _ = backbone.tokenize([text.format(name) for name in NAMES])
        assert torch.equal(tokens.ids, expected.ids)
        assert torch.equal(tokens.offsets, expected.offsets)


def test_an_ensemble_is_the_normalised_mean_of_normalised_embeddings(backbone: Backbone) -> None:
    classes = Classes(NAMES)
    parts = ENSEMBLE.split("|")
    assert len(parts) == 7
    every = []
    for template in parts:
        texts = [template.replace("{}", name) for name in NAMES]
        every.append(unit(embed_text(backbone, backbone.tokenize(texts)[0])))
    expected = unit(sum(every) / 7)  # type: ignore[arg-type]
    torch.testing.assert_close(classes.text_embeds(backbone, ENSEMBLE), expected)
    torch.testing.assert_close(classes.text_embeds(backbone, parts[1]), every[1])
    lengths = torch.stack(every).mean(0).norm(dim=-1)
    assert lengths.max() < 1 - 1e-4  # normalising the mean is not for nothing


def test_texts_of_a_class_are_averaged_and_normalised_again(backbone: Backbone) -> None:
    texts = (("a red dog runs.", "it barks."), (), ("a bridge.",))
    classes = Classes(NAMES, texts=texts)
    plain = Classes(NAMES).text_embeds(backbone)
    found = classes.text_embeds(backbone)
    one, two = (embed_text(backbone, backbone.tokenize([text])[0])[0] for text in texts[0])
    torch.testing.assert_close(found[0], unit(unit(one) + unit(two)))
    assert torch.equal(found[1], plain[1])
    assert not torch.equal(found[2], plain[2])
    assert torch.equal(
        classes.text_embeds(backbone, "{}"), Classes(NAMES).text_embeds(backbone, "{}")
    )
    assert Classes.of_json(classes.to_json()) == classes != Classes(NAMES)
    many = Classes(NAMES, texts=texts, ensemble=True)
    torch.testing.assert_close(many.text_embeds(backbone)[0], (unit(one) + unit(two)) / 2)
    assert torch.equal(many.text_embeds(backbone)[1], plain[1])
    assert Classes.of_json(many.to_json()) == many != classes
    with pytest.raises(ConfigError, match="the texts of class `boat` must have at most 77 tokens"):
        Classes(NAMES, texts=((), ("dog " * 90,), ())).text_embeds(backbone)


@pytest.mark.parametrize("variant", ["zero_shot classes", "kernel_ridge", "tip_adapter", "gda"])
def test_an_ensemble_of_texts_is_the_mean_of_similarities(variant: str, backbone: Backbone) -> None:
    """Of what compares with zero-shot's texts, before anything was learned of images."""
    names = CLASSES.names
    texts = tuple((f"a {name} in the park.", f"the {name} runs.") for name in names)
    data, adapter = examples(backbone), make(variant, backbone, precision="fp32")
    if variant == "gda" or variant == "tip_adapter":
        adapter.alpha.zero_()
    found = score(adapter, data, Classes(names, texts=texts, ensemble=True))
    images = unit(data.image_embeds)
    every = [unit(embed_text(backbone, backbone.tokenize(own)[0])) for own in texts]
    expected = torch.stack([(images @ own.T).mean(1) for own in every], 1)
    if variant == "kernel_ridge":
        _, _, share, scale = adapter.numbers.tolist()
        expected = scale / adapter.tau * (share * adapter.tau * expected).softmax(1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    averaged = score(adapter, data, Classes(names, texts=texts))
    assert (averaged - found).abs().max() > 1e-3  # zero-shot, too, looks at the texts
    plain = score(adapter, data, Classes(names))
    assert (averaged - plain).abs().max() > 1e-3


def test_what_was_made_is_kept_for_each_template_and_backbone(
    backbone: Backbone, siglip: Backbone
) -> None:
    classes = Classes(NAMES)
    first = classes.text_embeds(backbone)
    assert classes.text_embeds(backbone) is first
    assert classes.tokens(backbone) is classes.tokens(backbone, DEFAULT)
    assert not torch.equal(classes.text_embeds(backbone, "{}"), first)
    assert classes.text_embeds(siglip).shape == (3, siglip.embed_dim)
    assert classes.text_embeds(backbone) is first
    assert classes == Classes(NAMES)  # what is kept is no part of what it is


def test_a_name_that_does_not_fit_is_named(backbone: Backbone) -> None:
    name = "dog " * 70 + "boat"  # 71 tokens, with SOS, EOS and the full stop 74
    classes = Classes(("boat", name))
    assert classes.tokens(backbone, "{}.", 3).lengths.tolist() == [4, 74]
    with pytest.raises(ConfigError) as caught:
        classes.tokens(backbone, "{}.", 4)
    assert str(caught.value) == (
        f"class `{name}` in `{{}}.` must have at most 73 tokens, the text tower's 77 positions "
        "without 4 learned vectors, got 74."
    )
    longer = Classes(("boat", "dog " * 80, "cat"))  # already cut by the tokenizer
    with pytest.raises(ConfigError, match=r"class `dog .*at most 77 tokens.*got more\."):
        longer.tokens(backbone)


def test_an_adapter_leaves_its_vectors_room(backbone: Backbone) -> None:
    classes = Classes(("boat", "dog " * 60))
    short, long = (make("coop", backbone, **{"adapter.n_ctx": n}) for n in (14, 15))
    classes.tokens(backbone, short.class_words, short.added_tokens)
    with pytest.raises(ConfigError, match="without 15 learned vectors, got 63"):
        classes.tokens(backbone, long.class_words, long.added_tokens)
