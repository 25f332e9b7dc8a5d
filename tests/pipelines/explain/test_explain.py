"""What was learned: the numbers of explain.json against direct calls, and what the page says."""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pipelines.explain import __main__ as explain
from pipelines.explain import moves, sentences
from pipelines.explain.explain_page import render
from pipelines.explain.projection import align, neighbour_hits, project, trustworthiness
from pipelines.explain.subjects import captioned_classes, read_subjects
from pipelines.report import __main__ as report
from pipelines.train import __main__ as train
from tests.tiny import COLOURS, tiny_clip, tiny_features
from trainables.adapters.registry import ADAPTERS, adapters_for, build, make_config
from trainables.data.batches import Predictions
from trainables.errors import ConfigError, DataError
from trainables.features.classes import Classes
from trainables.features.features import open_features
from trainables.features.few_shot import Draw, Member, read_draw, write_draw
from trainables.features.split import SplitFeatures
from trainables.files import read_json, write_hashed
from trainables.metrics.retrieval import retrieval_metrics
from trainables.models.backbone import Backbone
from trainables.models.text_plan import Prompt
from trainables.models.text_tower import embed_text
from trainables.models.vocabulary import Vocabulary
from trainables.statistics.bootstrap import Bootstrap
from trainables.statistics.interpretation import against_random, nearest_words, stability
from trainables.training.checkpoint import load_adapter
from trainables.training.measure import measure
from trainables.training.predict import embed_images

TRAIN, VAL = 24, 24
CLASSES = {"task": "classification", "precision": "fp32"}
Found = dict[str, Any]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, clip: Path) -> Path:
    """A feature store, a draw of its colours, and six trained runs."""
    home = tmp_path_factory.mktemp("explain")
    store = tiny_features(home / "store", images=TRAIN, val=VAL, pixels=True, clip=clip)
    members = {
        split: tuple(Member(f"{split}-{i:03}", f"{split}{i}", i % 6) for i in range(count))
        for split, count in (("train", TRAIN), ("val", VAL))
    }
    names = ("<b>red</b>", *COLOURS[1:])
    draw = Draw("tiny", "", 4, 1, "all", names, tuple(range(6)), "a {}.", **members)
    write_draw(home / "draw.json", draw)
    same = ("optim.lr=0.05", "epochs=1", "batch_size=12", "precision=fp32")
    small = ("adapter.n_ctx=3", *same)
    own = {
        "soft": ("soft_prompt", *small),
        "deep": ("soft_prompt", *small, "adapter.depth=1"),
        "coop1": ("coop", *small, "seed=1"),
        "coop2": ("coop", *small, "seed=2"),
        "csc": ("coop", *small, "adapter.class_specific=true"),
        "lora": ("lora", "adapter.tower=both", *same),
    }
    for name, (adapter, *fields) in own.items():
        given = None if adapter == "soft_prompt" else home / "draw.json"
        train.run(train.Args(store, home / name, adapter, tuple(fields), given))
    return home


def val_of(home: Path, backbone: Backbone, draw: bool = True) -> SplitFeatures:
    val = open_features(home / "store", "val", backbone)
    return read_draw(home / "draw.json").of(val, "val") if draw else val


def explained(out: Path, *runs: Path, **flags: Any) -> Found:
    explain.run(explain.Args(runs, **{"k": 3, "draws": 50, "out": out, **flags}))
    found: Found = read_json(out / "explain.json")
    return found


@pytest.fixture(scope="module")
def all_of(home: Path) -> Found:
    """Everything explained at once."""
    names = ("coop1", "coop2", "csc", "lora", "soft", "deep")
    return explained(home / "all", *(home / name for name in names))


def entry_of(found: Found, run: str) -> Found:
    return next(one for one in found["entries"] if one["run"].endswith(f"/{run}"))


@torch.no_grad()
def accuracy(backbone: Backbone, data: SplitFeatures, vectors: Tensor) -> float:
    """CoOp's, from the tower alone."""
    assert data.classes is not None
    assert data.labels is not None
    tokens, _ = backbone.tokenize([f"{name}." for name in data.classes.names])
    texts = F.normalize(embed_text(backbone, tokens, Prompt(vectors)), dim=1)
    best = (F.normalize(data.image_embeds, dim=1) @ texts.T).argmax(1)
    return float((best == data.labels).double().mean())


def without(vectors: Tensor, m: int) -> Tensor:
    return torch.stack([v for n, v in enumerate(vectors.unbind(-2)) if n != m], -2)


def vectors_of(home: Path, run: str, backbone: Backbone) -> Tensor:
    return load_adapter(home / run / "best", backbone).vectors.detach()  # type: ignore[no-any-return, union-attr, operator]


@pytest.mark.parametrize("run", ["coop1", "csc", "soft"])
def test_words_and_chance_are_those_of_direct_calls(
    home: Path, backbone: Backbone, all_of: Found, run: str
) -> None:
    vectors = vectors_of(home, run, backbone)
    prompt = entry_of(all_of, run)["prompt"]
    assert prompt["shape"] == list(vectors.shape) == ([6, 3, 32] if run == "csc" else [3, 32])
    assert prompt["init"] == "random"
    assert prompt["classes"] == (["<b>red</b>", *COLOURS[1:]] if run == "csc" else [])
    for measure_ in ("cosine", "euclidean"):
        found = prompt["measures"][measure_]
        near = nearest_words(vectors, backbone, 3, measure_)
        chance = against_random(vectors, backbone, measure_, 50)
        tokens = [[word["token"] for word in row] for row in found["words"]]
        assert tokens == near.tokens.view(-1, 3).tolist()
        assert found["words"][2][0]["distance"] == near.distances.view(-1, 3)[2, 0]
        assert found["words"][0][0]["text"] == near.vocabulary.word(tokens[0][0]).text
        for name in ("nearest", "low", "high", "p", "corrected"):
            assert found[name] == getattr(chance, name).flatten().tolist()
    assert found["correction"] == "holm"


@pytest.mark.parametrize("run", ["coop1", "csc"])
def test_a_class_prompt_without_a_vector_is_measured_as_by_hand(
    home: Path, backbone: Backbone, all_of: Found, run: str
) -> None:
    data, vectors = val_of(home, backbone), vectors_of(home, run, backbone)
    entry = entry_of(all_of, run)
    found = entry["prompt"]["ablation"]
    full = accuracy(backbone, data, vectors)
    assert entry["val"] == {
        "metric": "accuracy",
        "before": measure(build(make_config("zero_shot", CLASSES), backbone), data)["accuracy"],
        "after": full,
    }
    assert (found["metric"], found["full"]) == ("accuracy", full)
    mean = Vocabulary.of(backbone).vectors.mean(0)
    for m in range(3):
        other = vectors.clone()
        other[..., m, :] = mean
        lost = full - accuracy(backbone, data, without(vectors, m))
        assert found["removed"][m] == pytest.approx(lost)
        assert found["replaced"][m] == pytest.approx(full - accuracy(backbone, data, other))
    assert any(found["removed"] + found["replaced"])


def test_a_caption_prompt_without_a_vector_is_measured_as_by_hand(
    home: Path, backbone: Backbone, all_of: Found
) -> None:
    data, vectors = val_of(home, backbone, draw=False), vectors_of(home, "soft", backbone)

    def by_hand(prompt: Tensor) -> float:
        with torch.no_grad():
            texts = F.normalize(embed_text(backbone, data.tokens, Prompt(prompt)), dim=1)
        own = Predictions(F.normalize(data.image_embeds, dim=1), texts)
        return retrieval_metrics(own, data.groups, data.groups[data.caption_rows])["t2i_r1"]

    found = entry_of(all_of, "soft")["prompt"]["ablation"]
    full = by_hand(vectors)
    assert (found["metric"], found["full"]) == ("t2i_r1", pytest.approx(full))
    for m in range(3):
        assert found["removed"][m] == pytest.approx(full - by_hand(without(vectors, m)))


def test_a_deep_prompt_says_why_it_has_no_ablation(all_of: Found) -> None:
    entry = entry_of(all_of, "deep")
    said = "a prompt with `adapter.depth` 1 must keep its 3 vectors, got 2"
    assert entry["prompt"]["ablation"].startswith(said)
    assert any(line.startswith(f"No ablation: {said}") for line in sentences.of(all_of, entry))
    assert len(entry["prompt"]["measures"]["cosine"]["p"]) == 3


def test_runs_of_one_adapter_and_shape_are_seeds(
    home: Path, backbone: Backbone, all_of: Found
) -> None:
    coop, soft = all_of["stability"]  # neither the class-specific prompt nor LoRA
    prompts = [vectors_of(home, run, backbone) for run in ("coop1", "coop2")]
    direct = stability(prompts, backbone, 3, "cosine", coop["draws"])
    assert coop["adapter"] == "coop"
    assert coop["runs"] == [f"{home}/coop1", f"{home}/coop2"]
    assert coop["pairs"] == [{"runs": coop["runs"], **asdict(direct.pairs[0, 1])}]
    assert coop["mean"] == asdict(direct.mean)
    assert coop["random_high"] == asdict(direct.random_high)
    assert soft["runs"] == [f"{home}/soft", f"{home}/deep"]


def test_neighbours_before_and_after_are_paired_by_image(
    home: Path, backbone: Backbone, all_of: Found
) -> None:
    data = val_of(home, backbone)
    assert data.labels is not None
    adapter = load_adapter(home / "lora" / "best", backbone)
    k = VAL // 6 - 1
    before = neighbour_hits(data.image_embeds.numpy(), data.labels.numpy(), k)
    after = neighbour_hits(embed_images(adapter, data).numpy(), data.labels.numpy(), k)
    found = entry_of(all_of, "lora")["embeddings"]["neighbours"]
    assert found["k"] == k == 3
    assert found["before"]["value"] == before.mean()
    assert found["after"]["value"] == after.mean()
    boot = Bootstrap(VAL, moves.RESAMPLES)
    drawn = [boot.mean(torch.from_numpy(hits), torch.arange(VAL)) for hits in (after, before)]
    images = int((after != before).sum())
    gap = boot.difference(float(after.mean() - before.mean()), *drawn, images)
    expected = asdict(gap)
    assert found["difference"] == expected
    assert found["difference"]["low"] < found["difference"]["high"]


def test_maps_before_and_after_lie_on_each_other(
    home: Path, backbone: Backbone, all_of: Found
) -> None:
    data = val_of(home, backbone)
    adapter = load_adapter(home / "coop1" / "best", backbone)
    assert data.classes is not None
    found = entry_of(all_of, "coop1")["embeddings"]
    assert (found["images"], found["shown"], found["paired"]) == (VAL, VAL, False)
    assert data.labels is not None
    assert found["labels"] == data.labels.tolist()
    with torch.no_grad():
        texts = F.normalize(adapter.embed_text(data.classes.tokens(backbone, "{}.")), dim=1)
    images = F.normalize(data.image_embeds, dim=1)
    after = moves.embed(adapter, data)
    np.testing.assert_allclose(after.texts, texts.numpy(), atol=1e-6)
    np.testing.assert_allclose(after.images, images.numpy(), atol=1e-6)
    before = moves.embed(build(make_config("zero_shot", CLASSES), backbone), data)
    old, new = (np.concatenate([each.images, each.texts]) for each in (before, after))
    first = project(old, "tsne", 0)
    second = align(project(new, "tsne", 0), first)
    for when, embeds, places in (("before", old, first), ("after", new, second)):
        drawn = found["maps"]["tsne"][when]
        assert (len(drawn["images"]), len(drawn["texts"])) == (VAL, 6)
        near = np.concatenate([drawn["images"], drawn["texts"]])
        np.testing.assert_allclose(near, places, atol=1e-3)
        assert drawn["trustworthiness"] == pytest.approx(trustworthiness(embeds, places))
    assert found["moved"]["images"] == 0
    apart = 1 - (texts * data.classes.text_embeds(backbone)).sum(1).mean()
    assert found["moved"]["texts"] == pytest.approx(float(apart), abs=1e-6)


def test_captions_are_shown_with_their_images(all_of: Found) -> None:
    found = entry_of(all_of, "soft")["embeddings"]
    assert found["paired"] is True
    assert (found["labels"], found["classes"], found["neighbours"]) == ([], [], None)
    places = found["maps"]["tsne"]["after"]
    assert len(places["images"]) == len(places["texts"]) == VAL
    rows = moves.shown(10_000, paired=True)
    assert len(set(rows)) == moves.PAIRS
    assert list(rows) == sorted(rows)


def test_what_did_not_move_is_drawn_where_it_was(home: Path, backbone: Backbone) -> None:
    data = val_of(home, backbone)
    same = moves.embed(build(make_config("zero_shot", CLASSES), backbone), data)
    found = moves.compare(same, same, data, None, ["tsne"])
    assert found["moved"] == {"images": 0.0, "texts": 0.0}
    assert found["maps"]["tsne"]["before"] == found["maps"]["tsne"]["after"]
    assert found["neighbours"]["difference"]["low"] == 0
    point = moves.Embeds(np.ones_like(same.images), np.ones_like(same.texts))
    collapsed = moves.compare(same, point, data, None, ["tsne"])
    assert collapsed["maps"] == {}
    assert "at least 5 different rows for a map, got 1." in collapsed["missing"]


def test_the_page_says_it_in_words_and_holds_nothing_foreign(all_of: Found) -> None:
    html, markdown = render(all_of)
    assert render(all_of) == (html, markdown)
    assert "<script" not in html
    assert not re.search(r'(src|href)="(?!#)', html)
    assert "<b>red</b>" not in html
    assert "&lt;b&gt;red&lt;/b&gt;" in html
    for line in (
        "lora has no prompt vectors, so there are no words to read.",
        "Class texts moved by",
        "The prompts of 2 runs of coop agree",
    ):
        assert line in html
        assert line in markdown
    assert html.count("<svg") == 2 * (4 + 6 + 4 + 6)  # words, of classes, worth, maps
    for text in (html, markdown):
        assert "None of" in text or "is nearer" in text or "are nearer" in text


def counted(close: int, count: int, draws: int) -> tuple[Found, Found]:
    by = {"corrected": [0.01] * close + [1.0] * (count - close), "p": [0.0] * count}
    prompt = {"measures": {"cosine": by, "euclidean": by}, "ablation": None, "init": "random"}
    quiet = {"images": 40, "moved": {"images": 0.25, "texts": 0.0}, "neighbours": None}
    entry = {
        **{"run": "runs/a", "name": "coop", "selected": True, "task": "classification"},
        **{"prompt": prompt, "embeddings": {**quiet, "missing": ""}},
        "val": {"metric": "accuracy", "before": 0.25, "after": 0.5},
    }
    return {"entries": [entry], "draws": draws}, entry


def test_sentences_count_what_is_nearer_than_chance() -> None:
    found, entry = counted(3, 16, 1000)
    assert sentences.headline(found) == (
        "3 of 16 vectors of coop are nearer to a word than chance, by cosine"
    )
    assert sentences.of(found, entry) == [
        "By cosine, 3 of 16 vectors are nearer to a word than chance (Holm, 5 %).",
        "By Euclidean distance, 3 of 16 vectors are nearer to a word than chance (Holm, 5 %).",
        "Accuracy on the 40 images of val: 50.0 %, zero-shot 25.0 %. The adapter was chosen on "
        "them, so this flatters.",
        "Images moved by 0.250 (mean cosine distance); class texts are where they were.",
    ]
    gap = {"difference": 0.1, "low": 0.025, "high": 0.2, "p": 0.125}  # of 4 images
    votes = {"k": 3, "before": {"value": 0.5}, "after": {"value": 0.6}, "difference": gap}
    entry["embeddings"]["neighbours"] = votes
    assert sentences.of(found, entry)[-1].endswith("p = 0.125, not shown to differ).")
    gap["p"] = 0.03125
    assert sentences.of(found, entry)[-1].endswith("p = 0.031).")
    entry["embeddings"]["neighbours"] = None
    entry["prompt"]["init"] = "a photo of a"
    assert sentences.headline(found).endswith("than chance, by cosine (where it began)")
    assert sentences.of(found, entry)[2] == (
        "The prompt began at the words “a photo of a”: being near them shows that it stayed, not "
        "what it learned."
    )
    found, entry = counted(0, 160, 1000)
    said = sentences.of(found, entry)
    assert said[0] == "By cosine, none of 160 vectors is nearer to a word than chance (Holm, 5 %)."
    assert said[2].endswith(
        "1,000 random vectors give 160 no p below 0.05. Take --draws 3200 or more."
    )
    assert 160 / (3200 + 1) < 0.05
    found, entry = counted(1, 1, 1000)
    assert sentences.of(found, entry)[0].startswith("By cosine, 1 of 1 vector is nearer")


@pytest.mark.parametrize("name", [n for n in ADAPTERS if n != "zero_shot"])
def test_a_prompt_that_is_set_is_what_the_tower_sees(name: str, backbone: Backbone) -> None:
    """For each adapter that has one, whatever it does to its vectors before."""
    adapter = build(make_config(name), backbone).eval()
    vectors = adapter.prompt and adapter.prompt.vectors
    heads = ("tip_adapter", "linear_probe", "kernel_ridge", "gda", "lp_plus", "ss_text", "prolip")
    towers = ("lora", "two_stage", "singular_values")
    if name in (*towers, "projection", "clip_adapter", *heads, *adapters_for("captioning")):
        assert vectors is None
        with pytest.raises(NotImplementedError, match="has no prompt vectors"):
            adapter.set_prompt(torch.zeros(1, 32))
        return
    assert vectors is not None
    tokens = Classes(("dog", "cat")).tokens(backbone, "{}.")
    others, deep = [vectors.detach().clone(), vectors.detach() + 0.1], None
    if name in ("maple", "promptsrc"):
        deep = (adapter.vectors if name == "maple" else adapter.text_mean)[1:]
        with pytest.raises(ConfigError, match="deeper blocks take the places"):
            adapter.set_prompt(vectors[1:])
    else:
        others += [vectors[1:] + 0.1, vectors[:0]]
    with torch.no_grad():
        for other in others:
            adapter.set_prompt(other)
            prompt = Prompt(other, deep=deep) if len(other) else None
            plain = embed_text(backbone, tokens, prompt)
            torch.testing.assert_close(adapter.embed_text(tokens), plain, rtol=1e-5, atol=1e-5)
            assert adapter.prompt is not None
            torch.testing.assert_close(adapter.prompt.vectors, other)


def test_a_second_call_has_nothing_to_do_until_something_changes(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(home / "lora", tmp_path / "lora"))
    report_flags = report.Args(run)
    write_hashed(run / "study.json", {"metric": "val/accuracy", "features": "", "adapters": []})
    report.run(report_flags)
    assert "explain/explain.html" not in (run / "report.html").read_text()
    (run / "study.json").unlink()
    explain.run(explain.Args((run,)))
    said = capsys.readouterr().out
    assert "1/1] lora of" in said
    page = run / "explain" / "explain.html"
    assert f"wrote {page}" in said
    assert f"wrote {run / 'report.html'}" in said
    assert 'href="explain/explain.html"' in (run / "report.html").read_text()
    assert "(explain/explain.md)" in (run / "report.md").read_text()
    before = page.stat().st_mtime_ns
    explain.run(explain.Args((run,)))
    assert f"{page} is up to date: nothing to do." in capsys.readouterr().out
    assert page.stat().st_mtime_ns == before
    explain.run(explain.Args((run,), k=4))
    assert "nothing to do" not in capsys.readouterr().out
    assert read_json(run / "explain" / "explain.json")["k"] == 4


def test_classes_of_captioned_images_colour_them(home: Path, backbone: Backbone) -> None:
    contest = read_subjects([home / "soft"])[0].contest
    data = val_of(home, backbone, draw=False)
    assert captioned_classes(contest, data) is None  # the store names no shards
    embeds = moves.embed(build(make_config("zero_shot"), backbone), data)
    labels = [i % 4 for i in range(VAL)]
    found = moves.compare(embeds, embeds, data, (labels, ["a", "b", "c", "d"]), ["tsne"])
    assert (found["labels"], found["classes"]) == (labels, ["a", "b", "c", "d"])
    assert found["neighbours"]["k"] == 5


def test_what_cannot_be_explained_says_why(home: Path, tmp_path: Path) -> None:
    for flags, sentence in (
        ({"k": 0}, "`--k` must be at least 1, got 0."),
        ({"draws": 0}, "`--draws` must be at least 1, got 0."),
        ({"map": ()}, "`--map` must name at least one, got none."),
        ({"run": ()}, "`--run` must name at least one, got none."),
    ):
        with pytest.raises(ConfigError, match=re.escape(sentence)):
            explain.run(explain.Args(**{"run": (home / "soft",), **flags}))
    with pytest.raises(DataError, match=r"must name each run once, got `.*soft` twice\."):
        read_subjects([home / "soft", home / "coop1", home / "soft"])
    with pytest.raises(DataError, match=r"holds no run: neither study.json nor run.json"):
        read_subjects([tmp_path])
    other = tiny_clip(tmp_path / "clip", seed=1)
    tiny_features(tmp_path / "store", clip=other)
    run = Path(shutil.copytree(home / "soft", tmp_path / "run"))
    about = read_json(run / "run.json")
    write_hashed(run / "run.json", about | {"features": str(tmp_path / "store")})
    said = r"run` was trained on backbone `.*clip` with fingerprint .* two backbones do not compare"
    with pytest.raises(DataError, match=said):
        read_subjects([home / "soft", run])


def test_the_json_holds_the_versions_and_no_place_of_test(all_of: Found) -> None:
    assert all_of["format"] == "cliptune-explain-1"
    assert all_of["versions"]["torch"] == torch.__version__
    # Whole strings: a folder's name may hold anything.
    assert not [text for text in strings(all_of) if re.fullmatch(r"test\W?\d*", text)]


def strings(value: object) -> Iterator[str]:
    """Those in a nest of JSON, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from itertools.chain.from_iterable(map(strings, (*value, *value.values())))
    elif isinstance(value, list):
        yield from itertools.chain.from_iterable(map(strings, value))
