"""cliptune from Python: the flags of the commands, their results, and a trained adapter in use."""

from __future__ import annotations

import dataclasses
import doctest
import importlib
import inspect
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import cliptune
from cliptune import results, stages, tuned, values
from pipelines.report import study
from tests import ROOT
from tests.things import in_this_process

STAGES = ("shards", "draw", "encode", "tune", "train", "arena", "evaluate", "report", "export")
ASIDE = {"dry_run"}  # says what it sees, and returns nothing


@pytest.mark.parametrize("name", STAGES)
def test_a_function_has_the_flags_of_its_command_with_their_defaults(name: str) -> None:
    fields = dataclasses.fields(importlib.import_module(f"pipelines.{name}.__main__").Args)
    wanted = {
        field.name: inspect.Parameter.empty
        if field.default is field.default_factory is dataclasses.MISSING
        else field.default_factory()
        if callable(field.default_factory)
        else str(field.default)
        if isinstance(field.default, Path)
        else field.default
        for field in fields
        if field.name not in ASIDE
    }
    found = inspect.signature(getattr(cliptune, name)).parameters
    assert {name: one.default for name, one in found.items()} == wanted


def choices(kind: Any) -> set[Any]:
    """The literals in a type, at any depth."""
    if get_origin(kind) is Literal:
        return set(get_args(kind))
    return set().union(*map(choices, get_args(kind)))


@pytest.mark.parametrize("name", STAGES)
def test_a_type_offers_the_choices_of_the_flag(name: str) -> None:
    flags = get_type_hints(importlib.import_module(f"pipelines.{name}.__main__").Args)
    takes = get_type_hints(getattr(cliptune, name))
    for flag in takes.keys() - {"return", "protocol"}:  # words, of which the flag checks each
        assert choices(takes[flag]) == choices(flags[flag]), flag


@pytest.mark.parametrize(
    "module", [stages, results, tuned, values]
)  # in this order: what is made is read
def test_the_examples_are_true(module: Any, desk: Path) -> None:
    found = doctest.testmod(
        module, extraglobs={"cliptune": cliptune}, optionflags=doctest.NORMALIZE_WHITESPACE
    )
    assert found.attempted > 0
    assert found.failed == 0


def test_what_one_calls_has_an_example() -> None:
    used = [getattr(cliptune, name) for name in (*STAGES, "load")]
    used += [
        one
        for name, one in vars(cliptune.Tuned).items()
        if inspect.isfunction(one) and name[0] != "_"
    ]
    assert [one.__name__ for one in used if ">>> " not in (one.__doc__ or "")] == []


def test_importing_it_is_quick() -> None:
    heavy = ("torch", "ray", "transformers", "pyarrow", "optuna", "pandas", "matplotlib")
    code = f"import sys, cliptune; print([n for n in {heavy} if n in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True) == "[]\n"


def test_the_package_is_the_command_too(desk: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cliptune", "report", "--help"],
        cwd=ROOT,
        text=True,
        capture_output=True,
        check=True,
    )
    assert "usage: cliptune report" in done.stdout


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"trials": "many"}, "`trials` must be a whole number or None, got 'many'."),
        ({"trials": True}, "`trials` must be a whole number or None, got True."),
        ({"trials": 0}, "`--trials` must be at least 1, got 0."),
        ({"sampler": "best"}, "`sampler` must be 'auto', 'tpe', 'gp', 'random', 'cmaes' or 'qmc'"),
        ({"adapter": ["lora", 3]}, "`adapter` must be a text, got 3."),
        ({"stop": 1}, "`stop` must be True or False, got 1."),
        ({"draw": 4}, "`draw` must be a path or None, got 4."),
        ({"gpus": "all"}, "`gpus` must be a number or 'auto', got 'all'."),
        ({"adapter": "cop"}, "Did you mean `coop`?"),
        ({"set": {"optim.rate": 1}}, "`optim.rate`"),
        ({"set": {"optim": {"lr": 1}}}, "`set` must be a flat mapping, got {'lr': 1} as a value."),
        ({"sampler": np.ones(2)}, "'cmaes' or 'qmc', got array([1., 1.])."),
        ({"seed": b"3"}, "`seed` must be a whole number, got b'3'."),
        ({"adapter": {"lora": 8}}, "`adapter` must be a text, got {'lora': 8}."),
        ({"retain": [""]}, "`retain` must be a path, got ''."),
        ({"draw": pd.Series(["a", "b"])}, "`draw` must be a path or None, got 0 a 1 b dtype: str."),
        ({"space": "a\0b"}, "`space` must be a path or None, got 'a\\x00b'."),
    ],
)
def test_a_wrong_value_is_named(given: dict[str, Any], said: str, desk: Path) -> None:
    with pytest.raises(cliptune.CliptuneError) as error:
        cliptune.tune("features", out="runs/none", **given)
    assert said in str(error.value)
    assert not Path("runs/none").exists()


def test_a_mapping_is_for_words_with_an_equals_sign() -> None:
    takes = [inspect.signature(getattr(cliptune, name)).parameters for name in STAGES]
    pairs = {one.name for all in takes for one in all.values() if one.annotation == "Pairs"}
    assert pairs | {"words"} == values.PAIRS  # `words` of `draw` are one text


@pytest.mark.parametrize(
    ("kind", "given", "wanted"),
    [
        (int, np.int64(3), 3),
        (float, np.float32(0.5), 0.5),
        (bool, np.bool_(True), True),
        (int | None, torch.tensor(3), 3),
        (tuple[int, ...], np.array([1, 2]), (1, 2)),
        (tuple[int, ...], np.array(4), (4,)),
        (tuple[str, ...], pd.Series(["a", "b"]), ("a", "b")),
    ],
)
def test_numbers_may_be_those_of_numpy_and_torch(kind: Any, given: Any, wanted: Any) -> None:
    found = values.value_of("x", kind, given)
    assert found == wanted
    assert type(found) is type(wanted)


def test_a_mapping_is_typed_as_on_the_command_line() -> None:
    given = {"batch_size": [32, 64], "adapter.paper": True, "adapter.lm": None, "lr": 1e-4}
    found = values.value_of("search", tuple[str, ...], given | {"x": np.bool_(True)})
    assert found == (
        *("batch_size=32,64", "adapter.paper=true", "adapter.lm=none", "lr=0.0001"),
        "x=true",
    )


def test_a_stage_goes_on_with_what_the_command_began(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--features", "features", "--adapter", "soft_prompt", "--set", "epochs=2")
    assert in_this_process("train", *words, "--out", "runs/begun") == 0
    before = (desk / "runs/begun/best/adapter.safetensors").stat().st_mtime_ns
    run = cliptune.train("features", "runs/begun", adapter="soft_prompt", set={"epochs": 2})
    assert (desk / "runs/begun/best/adapter.safetensors").stat().st_mtime_ns == before
    assert run.history.index.tolist() == [1, 2]
    assert run.metric == "val/t2i_r1"


def test_a_command_that_fails_within_a_stage_is_an_error(
    desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        sys.exit(2)

    monkeypatch.setattr("pipelines.report.__main__.run", fail)
    with pytest.raises(cliptune.CliptuneError, match="`report` ended with code 2"):
        cliptune.report("runs/mine")


def test_a_trial_that_runs_has_the_types_of_one_that_ended(
    desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = {"adapter": "lora", "trials": 1, "epochs": 1, "set": {"batch_size": 16}}
    ended = cliptune.tune("features", out="runs/looked-at", **tried).trials
    read = study.read_study

    def running(folder: Path) -> study.Study:
        found = read(folder)
        nothing = dict.fromkeys(("value", "seconds", "trainable_parameters"))
        trials = [dataclasses.replace(found.trials[0], state="running", **nothing)]
        return dataclasses.replace(found, trials=trials)

    monkeypatch.setattr(study, "read_study", running)
    runs = cliptune.Study.read("runs/looked-at").trials
    assert runs.dtypes.to_dict() == ended.dtypes.to_dict()
    assert np.isnan(runs.loc[0, "value"])
    monkeypatch.setattr(
        study, "read_study", lambda folder: dataclasses.replace(read(folder), trials=[])
    )
    none = cliptune.Study.read("runs/looked-at").trials
    assert none.columns[:3].tolist() == ["adapter", "state", "value"]


def test_two_goals_are_two_columns(desk: Path) -> None:
    half = {"shots": 2, "words": "things.json"}
    base, new = (
        cliptune.draw("things", part=part, out=f"{part}.json", **half)  # type: ignore[arg-type]
        for part in ("base", "new")
    )
    goals = {"draw": base, "retain": new, "folds": 0, "adapter": "coop"}
    found = cliptune.tune("labelled", out="runs/goals", trials=1, epochs=1, **goals)  # type: ignore[arg-type]
    assert found.trials.columns[:8].tolist()[-1] == "retained"
    assert 0 <= found.trials.loc[0, "retained"] <= 1
    with pytest.raises(cliptune.DataError, match=r"runs/goals` holds a study, not one run: `Study"):
        cliptune.Run.read("runs/goals")


def test_an_altered_file_is_named(desk: Path, tmp_path: Path) -> None:
    for name, file, read in (
        ("mine", "run.json", cliptune.Run.read),
        ("search", "best.json", cliptune.Study.read),
    ):
        shutil.copytree(f"runs/{name}", tmp_path / name)
        (tmp_path / name / file).write_text('{"adapter": "lora"}')
        with pytest.raises(cliptune.DataError, match=f"{file}` lacks the field"):
            read(tmp_path / name)


def test_a_run_before_its_first_epoch_has_no_history(desk: Path, tmp_path: Path) -> None:
    later = shutil.ignore_patterns("metrics.*", "last*", "best*")
    shutil.copytree("runs/mine", tmp_path / "begun", ignore=later)
    history = cliptune.Run.read(tmp_path / "begun").history
    assert history.empty
    assert history.index.name == "epoch"


def test_an_arena_is_no_run_and_needs_data(desk: Path) -> None:
    few = {"trials": 1, "shots": 2, "seed": 1, "adapter": ["zero_shot", "gda"], "protocol": "all"}
    with pytest.raises(cliptune.CliptuneError, match=r"`--data` must name .* got none"):
        cliptune.arena({}, backbone="clip", out="runs/no-arena", **few)
    made = cliptune.arena(
        {"things": "things"},
        backbone="clip",
        out="runs/an-arena",
        words="things=things.json",
        **few,
    )
    assert made.table["spread"].dtype == float  # of one seed there is none
    with pytest.raises(cliptune.DataError, match=r"runs/an-arena` holds an arena, not a run"):
        cliptune.Result.read("runs/an-arena")


def test_a_result_says_what_its_file_says(desk: Path) -> None:
    result = cliptune.Result.read("runs/mine")
    raw = json.loads((desk / "runs/mine/result.json").read_text())
    assert result.chosen == "soft_prompt"
    assert result.openings == len(raw["test_openings"]) == 1
    for row in raw["rows"]:
        for metric, found in row["metrics"].items():
            mine = result.metrics.loc[(row["name"], metric)]
            assert mine[["value", "low", "high"]].to_dict() == found
            gap = row["vs_baseline"].get(metric)
            wanted = [gap[key] if gap else np.nan for key in ("difference", "p", "p_holm")]
            np.testing.assert_array_equal(mine[["difference", "p", "p_holm"]], wanted)
    assert result.standings.loc["soft_prompt"].equals(
        result.metrics.loc[("soft_prompt", "t2i_r1@10")]
    )


@pytest.mark.parametrize(
    ("low", "high", "p", "beats"),
    [(0.1, 0.3, 0.01, True), (0.1, 0.3, 0.2, False), (-0.1, 0.3, 0.01, False)],
)
def test_to_beat_the_baseline_is_to_be_sure_of_it(
    low: float, high: float, p: float, beats: bool
) -> None:
    gap = {"difference": 0.2, "difference_low": low, "difference_high": high, "p_holm": p}
    nothing = dict.fromkeys(gap)
    frame = pd.DataFrame({"zero_shot": nothing, "lora": gap}, dtype=float).T
    made = [cliptune.Result(Path(), "m", row, frame, frame, 1) for row in ("lora", "zero_shot")]
    assert [one.beats_baseline for one in made] == [beats, False]


@pytest.mark.parametrize("read", [cliptune.Study.read, cliptune.Result.read, cliptune.Run.read])
def test_a_folder_without_it_is_named(read: Callable[[str], object], desk: Path) -> None:
    with pytest.raises(cliptune.DataError, match="photos"):
        read("photos")
    with pytest.raises(cliptune.ConfigError, match="must be a path, got None"):
        read(None)  # type: ignore[arg-type]


def test_what_the_machine_says_is_a_sentence_too(desk: Path) -> None:
    with pytest.raises(cliptune.CliptuneError, match=r"arena.json` is a file, where a folder is"):
        cliptune.Arena.read("captions.csv")
    with pytest.raises(cliptune.CliptuneError, match=r"captions.csv/runs` is a file, where a"):
        cliptune.train("features", "captions.csv/runs", adapter="lora")


# A trained adapter in use


def test_images_may_be_files_pictures_and_embeddings(desk: Path) -> None:
    mine, bare = cliptune.load("runs/mine"), cliptune.load(backbone="clip")
    assert len(repr(mine)) < 200
    names = ["photos/3.jpg", "photos/1.jpg", "photos/3.jpg"]
    found = mine.embed_images(names)
    assert found.shape == (3, 16)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(found[0], found[2])
    pictures = [Image.open(name) for name in names]
    np.testing.assert_array_equal(mine.embed_images(pictures), found)
    np.testing.assert_allclose(mine.embed_images(Path(names[1])), found[1:2], atol=1e-6)
    everything = mine.embed_images("photos")
    assert len(everything) == 60
    embeds = bare.embed_images(names)
    np.testing.assert_allclose(mine.embed_images(embeds), found, atol=1e-6)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "PA", "CMYK", "1", "I"])
def test_a_picture_of_any_mode_is_the_file_that_it_is_of(
    mode: str, desk: Path, tmp_path: Path
) -> None:
    picture = Image.open("photos/5.jpg").convert(mode)
    suffix = "tiff" if mode in ("PA", "CMYK", "I") else "png"
    picture.save(tmp_path / f"it.{suffix}")
    bare = cliptune.load(backbone="clip")
    np.testing.assert_array_equal(
        bare.embed_images(picture), bare.embed_images(tmp_path / f"it.{suffix}")
    )


def test_a_picture_that_lies_on_its_side_is_put_upright(desk: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.open("photos/5.jpg").resize((40, 20))
    picture.save(tmp_path / "side.png", exif=exif)
    bare = cliptune.load(backbone="clip")
    np.testing.assert_array_equal(
        bare.embed_images(Image.open(tmp_path / "side.png")),
        bare.embed_images(tmp_path / "side.png"),
    )


def test_a_picture_keeps_its_depth_and_what_is_clear_in_it(desk: Path) -> None:
    bare = cliptune.load(backbone="clip")
    with pytest.raises(cliptune.DataError, match=r"`images\[0\]`: floating-point samples"):
        bare.embed_images(Image.new("F", (9, 9)))
    ramp = np.arange(0, 65536, 41, dtype=np.uint16)[:1536].reshape(32, 48)
    shallow = bare.embed_images(Image.fromarray((ramp / 257).round().astype(np.uint8)))
    for mode, dtype in (("I;16", "<u2"), ("I;16B", ">u2"), ("I", "=i4")):
        deep = Image.frombytes(mode, (48, 32), ramp.astype(dtype).tobytes())
        np.testing.assert_allclose(bare.embed_images(deep), shallow, atol=1e-3)
    white = bare.embed_images(Image.new("RGB", (9, 9), "white"))
    for mode in ("LA", "RGBA"):
        clear = Image.new(mode, (9, 9))  # all of it
        for same in (clear, clear.convert({"LA": "La", "RGBA": "RGBa"}[mode])):
            np.testing.assert_array_equal(bare.embed_images(same), white)


def test_a_picture_that_cannot_be_read_is_named_by_its_place(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few, closed = cliptune.load("runs/few"), Image.open("photos/0.jpg")
    closed.close()
    pictures = [Image.open("photos/1.jpg"), closed]
    with pytest.raises(cliptune.DataError, match=r"`images\[1\]`: Operation on closed image"):
        few.classify(pictures)
    assert few.classify(pictures, on_error="skip", top=1)["image"].tolist() == [0]
    assert "`images[1]`" in capsys.readouterr().err
    with pytest.raises(cliptune.DataError, match=r"`images\[0\]`: 70.0 megapixels"):
        few.classify([Image.new("L", (7000, 10000))])


def test_what_was_loaded_stays_where_it_was(
    desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = cliptune.load("runs/mine")
    monkeypatch.chdir(tmp_path)
    assert len(mine.search("a red dog", desk / "photos", top=2)) == 2
    assert list(tmp_path.iterdir()) == []


def test_what_is_nearest_is_found(desk: Path) -> None:
    mine = cliptune.load("runs/mine")
    found = mine.search(["a red dog", "a blue cat"], images="photos", top=3)
    assert found.columns.tolist() == ["query", "rank", "image", "cosine"]
    assert found["query"].tolist() == ["a red dog"] * 3 + ["a blue cat"] * 3
    cosines = mine.embed_images(found["image"][:3].tolist()) @ mine.embed_text("a red dog").T
    np.testing.assert_allclose(cosines[:, 0], found["cosine"][:3], atol=1e-6)
    every = mine.embed_images("photos") @ mine.embed_text("a red dog").T
    np.testing.assert_allclose(np.sort(every[:, 0])[::-1][:3], found["cosine"][:3], atol=1e-6)
    assert (desk / "runs/mine/index").is_dir()


def test_pictures_and_embeddings_are_called_by_their_number(desk: Path) -> None:
    mine = cliptune.load("runs/mine")
    pictures = [Image.open(f"photos/{number}.jpg") for number in range(12)]
    by_file = mine.search("a red dog", [f"photos/{n}.jpg" for n in range(12)], top=12)
    wanted = [int(Path(name).stem) for name in by_file["image"]]
    assert mine.search("a red dog", pictures)["image"].tolist() == wanted
    embeds = cliptune.load(backbone="clip").embed_images("photos")
    assert set(mine.search("a red dog", embeds, top=60)["image"]) == set(range(60))
    few = cliptune.load("runs/few").classify(embeds[:2], top=1)
    assert few["image"].tolist() == [0, 1]


def test_classes_come_with_probabilities_and_sets(desk: Path) -> None:
    few = cliptune.load("runs/few")
    assert few.classes == ("ball", "boat", "cat", "tree")
    found = few.classify(["photos/0.jpg", "photos/1.jpg"], top=4)
    assert found.columns.tolist() == ["image", "rank", "class", "probability"]
    np.testing.assert_allclose(found.groupby("image")["probability"].sum(), 1, atol=1e-5)
    sure = few.classify("photos/0.jpg", confidence=0.6)
    assert {"set", "none"} <= set(sure.columns)
    assert all(set(names) <= set(few.classes) for names in sure["set"])
    bare = cliptune.load(backbone="clip").classify("photos/0.jpg", classes=["red", "blue"])
    assert bare.columns.tolist() == ["image", "rank", "class", "softmax"]


def test_a_bad_image_ends_the_call_or_is_left_out(
    desk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no picture")
    mine, few = cliptune.load("runs/mine"), cliptune.load("runs/few")
    with pytest.raises(cliptune.DataError, match=r"bad.jpg`: not an image"):
        mine.embed_images(["photos/0.jpg", bad])
    with pytest.raises(cliptune.DataError, match=r"bad.jpg`: not an image"):
        few.classify(["photos/0.jpg", bad])
    with pytest.raises(cliptune.DataError, match=r"bad.jpg`: not an image"):
        mine.search("a red dog", ["photos/0.jpg", bad])
    rest = few.classify(["photos/0.jpg", bad], on_error="skip", top=1)
    assert rest["image"].tolist() == ["photos/0.jpg"]
    capsys.readouterr()
    for _ in range(2):  # found bad, then known to be
        rest = mine.search("a red dog", ["photos/0.jpg", bad], on_error="skip")
        assert rest["image"].tolist() == ["photos/0.jpg"]
        assert capsys.readouterr().err.count("bad.jpg`: not an image") == 1


def test_where_no_image_can_be_read_the_columns_are_there(desk: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    mine, few, words = map(cliptune.load, ("runs/mine", "runs/few", "runs/words"))
    for images in (tmp_path / "bad.jpg", "nowhere.jpg"):
        frames = [
            (mine.search("a dog", images, on_error="skip"), ["query", "rank", "image", "cosine"]),
            (words.caption(images, on_error="skip"), ["image", "caption"]),
            (
                few.classify(images, confidence=0.6, on_error="skip"),
                ["image", "rank", "class", "probability", "set", "none"],
            ),
        ]
        for frame, columns in frames:
            assert frame.empty
            assert frame.columns.tolist() == columns
    (tmp_path / "empty").mkdir()
    for call in (mine.embed_images, few.classify, words.caption):
        with pytest.raises(cliptune.DataError, match="holds no image"):
            call(tmp_path / "empty")
    with pytest.raises(cliptune.DataError, match="holds no image"):
        mine.search("a dog", tmp_path / "empty")
    odd = tmp_path / os.fsdecode(b"\xff.jpg")
    shutil.copy("photos/0.jpg", odd)
    with pytest.raises(cliptune.DataError, match="its name is not UTF-8"):
        few.classify(odd)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ([], "got none."),
        ([1, 2], "got int."),
        (["photos/0.jpg", 3], "got int, str."),
        (np.zeros((4, 4, 3), np.uint8), "a picture's pixels go in as `PIL.Image.fromarray`."),
        (np.zeros((2, 7), np.float32), "must have vectors of width 16, got 7."),
        (np.zeros((2, 16), np.float32), "`images`, row 0: the vector is zero."),
        (np.ma.masked_less(np.eye(16), 0.5), "`images`, row 0: the vector has NaN."),
        (np.zeros((0, 16)), "must be finished embeddings"),
        (None, "got NoneType."),
        (3, "got int."),
        ("", "`images` must be a path, got ''."),
        (["photos/0.jpg", "a\0b"], "`images` must be a path, got 'a\\x00b'."),
        ("a" * 300, "has a longer name than the file system takes"),
        ("nowhere.jpg", "nowhere.jpg"),
    ],
)
def test_what_is_no_image_is_named(images: Any, said: str, desk: Path) -> None:
    mine = cliptune.load("runs/mine")
    with pytest.raises(cliptune.CliptuneError) as error:
        mine.embed_images(images)
    assert said in str(error.value)


def test_a_run_is_asked_for_what_it_can_do(desk: Path) -> None:
    mine, few = cliptune.load("runs/mine"), cliptune.load("runs/few")
    with pytest.raises(cliptune.ConfigError, match="is a run of retrieval"):
        mine.caption("photos/0.jpg")
    with pytest.raises(cliptune.ConfigError, match="is a run of classification"):
        few.search("a red dog", images="photos")
    with pytest.raises(cliptune.ConfigError, match="must name what to choose among"):
        mine.classify("photos/0.jpg")
    with pytest.raises(cliptune.ConfigError, match="`texts` must be texts with words in them"):
        mine.embed_text([])
    with pytest.raises(cliptune.ConfigError, match="`texts` must be a text, got None"):
        mine.embed_text(None)  # type: ignore[arg-type]
    with pytest.raises(cliptune.ConfigError, match="`on_error` must be 'raise' or 'skip'"):
        few.classify("photos/0.jpg", on_error="ignore")  # type: ignore[arg-type]
    with pytest.raises(cliptune.ConfigError, match="`--run` or `--backbone` must name the model"):
        cliptune.load()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"top": 0}, "`--top` must be at least 1, got 0."),
        ({"top": "3"}, "`top` must be a whole number, got '3'."),
        ({"confidence": "0.9"}, "`confidence` must be a number or None, got '0.9'."),
        ({"sets": "most"}, "`sets` must be 'split', 'adaptive' or 'class-wise', got 'most'."),
        ({"classes": "cat"}, "`--classes` must name at least 2 classes, got 1."),
        ({"classes": {0: "cat", 1: "dog"}}, "`classes` must be a text, got {0: 'cat', 1: 'dog'}."),
        ({"classes": ["cat", 1]}, "`classes` must be a text, got 1."),
        ({"classes": ["cat", "\udcff"]}, "`classes` must be a text, got '\\udcff'."),
        ({"template": None}, "`template` must be a text, got None."),
    ],
)
def test_a_wrong_value_is_named_in_use_too(given: dict[str, Any], said: str, desk: Path) -> None:
    with pytest.raises(cliptune.ConfigError) as error:
        cliptune.load(backbone="clip").classify("photos/0.jpg", **given)
    assert str(error.value) == said


def test_search_and_caption_check_their_values_too(desk: Path) -> None:
    mine, words = cliptune.load("runs/mine"), cliptune.load("runs/words")
    with pytest.raises(cliptune.ConfigError, match="`--top` must be at least 1, got 0"):
        mine.search("a dog", "photos", top=0)
    with pytest.raises(cliptune.ConfigError, match=r"`--seconds` must be at least 0.5, got 0"):
        words.caption("photos/0.jpg", seconds=0)
    np.save("vectors.npy", mine.embed_images("photos/0.jpg"))
    for images in (["photos/0.jpg", "vectors.npy"], ["vectors.npy", "photos/0.jpg"]):
        with pytest.raises(
            cliptune.ConfigError, match=r"one file of embeddings, got `vectors.npy`"
        ):
            mine.search("a dog", images)
    with pytest.raises(cliptune.ConfigError, match="`backbone` must be a text, got None"):
        cliptune.load(backbone=None)  # type: ignore[arg-type]


def test_paths_may_be_a_column_or_a_generator(desk: Path) -> None:
    bare, names = cliptune.load(backbone="clip"), ["photos/0.jpg", "photos/1.jpg"]
    wanted = bare.embed_images(names)
    found = [pd.Series(names), np.array(names), np.array(names, object), map(Path, names)]
    for images in found:
        np.testing.assert_array_equal(bare.embed_images(images), wanted)  # type: ignore[arg-type]
    with_words = [pd.Series(["a", "b"]), np.array(["a", "b"]), iter("ab")]
    shares = [bare.classify(names, classes=one)["softmax"].tolist() for one in with_words]
    assert shares[0] == shares[1] == shares[2]


def test_captions_are_those_of_the_command(desk: Path) -> None:
    words = cliptune.load("runs/words")
    by_file = words.caption(["photos/0.jpg", "photos/7.jpg"])
    pictures = words.caption([Image.open("photos/0.jpg"), Image.open("photos/7.jpg")])
    assert by_file["caption"].tolist() == pictures["caption"].tolist()
    assert by_file["image"].tolist() == ["photos/0.jpg", "photos/7.jpg"]
    assert pictures["image"].tolist() == [0, 1]
