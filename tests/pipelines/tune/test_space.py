"""The user's own space: what is printed, what is read back, and what is refused before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from pipelines.space import __main__ as space
from pipelines.tune import __main__ as tune
from pipelines.tune import flags as tune_flags
from pipelines.tune.samplers.searcher import StudySearcher
from pipelines.tune.spaces import as_yaml, on_store, possible, read_file, searched
from pipelines.tune.study.search import Search
from pipelines.tune.study.study import open_study
from search_spaces.notation import contains, plain, read, words
from search_spaces.registry import SPACES
from tests.tiny import tiny_features
from trainables.adapters.registry import adapters_for, make_config
from trainables.config import Task, flatten
from trainables.errors import CliptuneError, ConfigError
from trainables.files import read_json, write_hashed
from trainables.training.loop import ALONE, never
from trainables.trials.crew import Crew
from trainables.trials.jobs import Job
from trainables.trials.workbench import TrialSettings, Workbench

EVERY: list[tuple[str, Task]] = [(name, task) for name, own in SPACES.items() for task in own]  # type: ignore[misc]
METRIC = "val/t2i_r1"


def check(*words: str, adapter: tuple[str, ...] = ("lora",), **more: Any) -> Search:
    """What `tune` makes of its flags, before any work."""
    return tune_flags.check(tune.Args(Path("features"), adapter=adapter, search=words, **more))


def of_file(folder: Path, text: str, **more: Any) -> Search:
    path = folder / "space.yaml"
    path.write_text(text)
    return check(space=path, **{"adapter": (), **more})


def same(one: BaseDistribution, other: BaseDistribution) -> bool:
    """Equal, and of the same types: to Optuna, choices 1, True and 1.0 are equal."""
    return repr(one) == repr(other)


# -- what a store narrows --------------------------------------------------------------------


def test_without_pixels_nothing_goes_through_the_image_tower(
    tmp_path: Path, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tiny_features(tmp_path, clip=clip)

    def on(*flags: str) -> Search:
        return tune_flags.check(tune.Args(store, adapter=("lora",), search=flags))

    tower = on("adapter.tower=text,vision,both").space("lora")["adapter.tower"]
    assert same(tower, CategoricalDistribution(["text"]))
    with pytest.raises(ConfigError, match=r"`lora` needs both towers, and .* has no pixels"):
        on("adapter.tower=vision,both")
    assert "lora" not in on().spaces  # the adapter's own space is as it was

    base = {"task": "classification"}
    every = {name: SPACES[name]["classification"] for name in adapters_for("classification")}
    works = [name for name, own in every.items() if possible("the text tower", name, own, base)]
    towers = {"maple", "promptsrc", "two_stage", "singular_values"}
    assert every.keys() - works == towers
    narrowed = on_store(store, {name: every[name] for name in works}, base)
    assert list(narrowed) == ["lora"]
    assert same(narrowed["lora"]["adapter.tower"], CategoricalDistribution(["text"]))
    search = Search(("lora",), METRIC, 8, 2, 0, {}, "classification", spaces=narrowed)
    assert search.starts("lora") == []
    assert "`adapter.tower` both is outside [text]" in search.left_out("lora")[0]


# -- what is printed is what is read ----------------------------------------------------------


@pytest.mark.parametrize(("name", "task"), EVERY)
def test_what_is_printed_reads_back_as_the_adapters_own_space(
    name: str, task: Task, tmp_path: Path
) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(as_yaml([name], task))
    both = (name, "another")  # a space of a single value is for a search of several adapters
    read_back = searched(both, {"task": task}, read_file(path), [])[name]
    assert list(read_back) == list(SPACES[name][task])
    for field, distribution in SPACES[name][task].items():
        assert same(read_back[field], distribution), field


@pytest.mark.parametrize(("name", "task"), EVERY)
def test_behind_each_field_stands_what_it_stays_at(name: str, task: Task) -> None:
    recipe = flatten(make_config(name, {"task": task}))
    own = [line.strip() for line in as_yaml([name], task).splitlines() if line.startswith("  ")]
    for line, field in zip(own, SPACES[name][task], strict=True):
        assert line.startswith(f"{field}: ")
        assert line.endswith(f"  # {plain(recipe[field])}")


def test_one_notation_in_a_file_and_on_the_command_line() -> None:
    wide = {"optim.lr": "1e-5..1e-2:log", "adapter.dropout": "0..0.5", "adapter.rank": "1..32:log"}
    listed = {"batch_size": "32,64,128", "adapter.rslora": "true,false", "adapter.targets": "qv"}
    search = check(*(f"{field}={text}" for field, text in (wide | listed).items()))
    found = search.space("lora")
    assert found["optim.lr"] == FloatDistribution(1e-5, 1e-2, log=True)
    assert found["adapter.dropout"] == FloatDistribution(0.0, 0.5)
    assert found["adapter.rank"] == IntDistribution(1, 32, log=True)
    assert same(found["batch_size"], CategoricalDistribution((32, 64, 128)))
    assert same(found["adapter.rslora"], CategoricalDistribution((True, False)))
    assert same(found["adapter.targets"], CategoricalDistribution(("qv",)))
    for field, text in wide.items():
        assert words(found[field]) == text
    for field in SPACES["lora"]["retrieval"].keys() - wide.keys() - listed.keys():
        assert found[field] == SPACES["lora"]["retrieval"][field]  # as it was


@given(st.floats(allow_nan=False, allow_infinity=False), st.floats(0, 1e12))
def test_a_range_of_any_numbers_is_written_exactly(low: float, width: float) -> None:
    made = FloatDistribution(low, low + width)
    assert same(read("x", words(made), float, float), made)  # type: ignore[arg-type]


def test_the_type_is_the_fields_own_however_a_number_is_written() -> None:
    search = check("optim.lr=1..2", "adapter.rank=2.0,1e1", "temperature.scale=none,10")
    found = search.space("lora")
    assert same(found["optim.lr"], FloatDistribution(1.0, 2.0))
    assert same(found["adapter.rank"], CategoricalDistribution((2, 10)))
    assert same(found["temperature.scale"], CategoricalDistribution((None, 10.0)))


def test_yaml_gives_ranges_lists_and_single_values(tmp_path: Path) -> None:
    text = """
    prefix_captioner:
      optim.lr: [1e-5, 0.0001]    # to YAML, 1e-5 is a word
      adapter.normalize: [true, false]
      adapter.decoding: beam, greedy
      adapter.prefix_length: 10
      adapter.lora_alpha: 1 .. 32 :log
    """
    path = tmp_path / "space.yaml"
    path.write_text(text)
    found = searched(("prefix_captioner",), {"task": "captioning"}, read_file(path), [])
    expected: dict[str, BaseDistribution] = {
        "optim.lr": CategoricalDistribution((1e-5, 1e-4)),
        "adapter.normalize": CategoricalDistribution((True, False)),
        "adapter.decoding": CategoricalDistribution(("beam", "greedy")),
        "adapter.prefix_length": CategoricalDistribution((10,)),
        "adapter.lora_alpha": FloatDistribution(1.0, 32.0, log=True),
    }
    assert found.keys() == {"prefix_captioner"}
    assert list(found["prefix_captioner"]) == list(expected)
    assert all(same(found["prefix_captioner"][field], d) for field, d in expected.items())


def test_words_with_commas(tmp_path: Path) -> None:
    """A comma parts choices on a command line; in a file, and in brackets, it is one of a text."""
    listed = CategoricalDistribution(("a, b", "c"))
    flag = check("adapter.init=['a, b', c]", adapter=("soft_prompt",))
    assert same(flag.space("soft_prompt")["adapter.init"], listed)
    parted = check("adapter.init=a, b", adapter=("soft_prompt",))
    assert same(parted.space("soft_prompt")["adapter.init"], CategoricalDistribution(("a", "b")))
    text = "soft_prompt:\n  adapter.n_ctx: 1..4\n  adapter.init: a, b\n"
    file = of_file(tmp_path, text)
    assert same(file.space("soft_prompt")["adapter.init"], CategoricalDistribution(("a, b",)))


def test_a_folder_to_choose_is_found_from_wherever_a_trial_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    base = {"task": "captioning"}
    found = searched(("prefix_captioner",), base, {}, ["adapter.lm=tiny,mine"])
    lm = found["prefix_captioner"]["adapter.lm"]
    assert same(lm, CategoricalDistribution(("tiny", str(tmp_path / "mine"))))


# -- which adapters, which fields ----------------------------------------------------------------


def test_the_files_adapters_are_searched_and_what_it_leaves_out_stays_at_the_recipe(
    tmp_path: Path,
) -> None:
    text = "lora:\n  optim.lr: 1e-5..1e-2:log\nprojection:\n"
    search = of_file(tmp_path, text)
    assert search.adapters == ("lora", "projection")
    assert list(search.space("lora")) == ["optim.lr"]
    assert search.space("projection") == {}
    asks = StudySearcher(open_study(tmp_path), search, tmp_path)
    for n in range(8):
        values = dict(asks.suggest(f"ray{n}")["values"])
        drawn = values.keys() - {"name", "task", "epochs", "seed"}
        assert drawn == ({"optim.lr"} if values["name"] == "lora" else set())
        recipe = flatten(make_config(values.pop("name")))
        made = flatten(make_config(recipe["name"], values))  # type: ignore[arg-type]
        assert {k for k in made if made[k] != recipe[k]} <= {"optim.lr", "epochs", "seed"}


def test_adapters_of_file_and_flag_that_differ_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "lora:\n  optim.lr: 1e-5..1e-2:log\nprojection:\n  optim.lr: 1..2\n"
    search = of_file(tmp_path, text, adapter=("lora", "soft_prompt"), portfolio=False)
    assert search.adapters == ("lora", "soft_prompt")
    assert search.space("soft_prompt") == SPACES["soft_prompt"]["retrieval"]
    assert capsys.readouterr().out.splitlines() == [
        "`projection` of `--space` is not searched: `--adapter` does not name it.",
        "`soft_prompt` is searched in its own space: `--space` does not name it.",
    ]


def test_a_flag_replaces_what_the_file_says_and_set_overrides_both(tmp_path: Path) -> None:
    text = "lora:\n  optim.lr: 1e-5..1e-2:log\n  batch_size: [32, 64]\n  adapter.rank: 1..8\n"
    flags = {"search": ("adapter.rank=2,8",), "set": ("batch_size=128",), "adapter": ("lora",)}
    path = tmp_path / "space.yaml"
    path.write_text(text)
    search = tune_flags.check(tune.Args(Path("features"), space=path, **flags))  # type: ignore[arg-type]
    assert same(search.space("lora")["adapter.rank"], CategoricalDistribution((2, 8)))
    asks = StudySearcher(open_study(tmp_path), search, tmp_path)
    assert asks.suggest("ray")["values"]["batch_size"] == 128


def test_a_field_that_only_some_have_applies_to_those_and_says_so(
    capsys: pytest.CaptureFixture[str],
) -> None:
    search = check("adapter.n_ctx=1..32", adapter=("soft_prompt", "lora", "projection"))
    assert search.space("soft_prompt")["adapter.n_ctx"] == IntDistribution(1, 32)
    assert search.space("lora") == SPACES["lora"]["retrieval"]
    line = "`adapter.n_ctx` is searched of `soft_prompt`: `lora`, `projection` have no such field."
    assert capsys.readouterr().out.splitlines() == [line]


def test_any_field_of_the_configuration_can_be_searched(tmp_path: Path) -> None:
    """Temperature, schedule, loss, decoding; what is searched reaches the trial."""
    fields = ("temperature.final=10..90", "optim.warmup=0..0.3", "loss.kind=infonce,siglip")
    search = check(*fields, "patience=0..3", adapter=("lora", "projection"))
    asks = StudySearcher(open_study(tmp_path), search, tmp_path)
    for n in range(4):
        values = asks.suggest(f"ray{n}")["values"]
        assert {"temperature.final", "optim.warmup", "loss.kind", "patience"} <= values.keys()
        make_config(values["name"], {k: v for k, v in values.items() if k != "name"})
    spoken = searched(
        ("prefix_captioner",),
        {"task": "captioning"},
        {},
        ["adapter.top_p=0.5..1", "adapter.beams=1..8"],
    )
    assert spoken["prefix_captioner"]["adapter.beams"] == IntDistribution(1, 8)


# -- recipes ----------------------------------------------------------------------------------


def test_a_recipe_outside_is_left_out_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search = check("optim.lr=1e-3..1e-2", adapter=("lora", "projection"), portfolio=False)
    assert search.recipes("lora") == search.recipes("projection") == []
    assert capsys.readouterr().out.splitlines() == [
        "the recipe of `lora` is left out: its `optim.lr` 5e-5 is outside 1e-3..1e-2.",
        "the recipe of `projection` is left out: its `optim.lr` 1e-4 is outside 1e-3..1e-2.",
    ]
    assert search.starts("lora") == []
    asks = StudySearcher(open_study(tmp_path), search, tmp_path)
    lr = asks.suggest("ray")["values"]["optim.lr"]
    assert 1e-3 <= lr <= 1e-2


def test_of_several_recipes_those_inside_stay() -> None:
    names = ("prefix_captioner",)
    full = searched(names, {"task": "captioning"}, {}, ["adapter.lm_mode=lora,full"])
    search = Search(names, "val/cider_d", 8, 3, 0, {}, "captioning", spaces=full)
    assert [one["adapter.lm_mode"] for one in search.recipes(names[0])] == ["full"]
    assert search.left_out(names[0]) == [
        "the recipe of `prefix_captioner` is left out: its `adapter.lm_mode` frozen is outside "
        "[lora, full]."
    ]
    part = {names[0]: {"optim.lr": SPACES[names[0]]["captioning"]["optim.lr"]}}
    search = Search(names, "val/cider_d", 8, 3, 0, {}, "captioning", spaces=part)
    assert len(search.recipes(names[0])) == 1  # the other one's mapper is not searched
    assert "is not searched" in search.left_out(names[0])[0]


def test_what_is_fixed_lies_nowhere_outside() -> None:
    search = check("batch_size=8,16", set=("optim.lr=5",))
    assert search.left_out("lora") == [
        "the recipe of `lora` is left out: its `batch_size` 32 is outside [8, 16]."
    ]
    assert check(set=("optim.lr=5", "batch_size=7")).left_out("lora") == []


@pytest.mark.parametrize(("name", "task"), EVERY)
def test_in_the_adapters_own_spaces_no_recipe_is_left_out(name: str, task: Task) -> None:
    search = Search((name,), METRIC, 8, 3, 0, {}, task)
    assert search.recipes(name)
    assert search.left_out(name) == []


def test_what_a_distribution_contains() -> None:
    assert contains(FloatDistribution(0.0, 0.5), 0.5)
    assert not contains(FloatDistribution(0.0, 0.5), 0.5000001)
    assert not contains(FloatDistribution(1.0, 2.0), None)
    assert not contains(FloatDistribution(1.0, 2.0), "1.5")
    assert contains(FloatDistribution(0.0, 1.0, step=0.1), 0.30000000000000004)
    assert not contains(FloatDistribution(0.0, 1.0, step=0.25), 0.3)
    assert contains(IntDistribution(1, 9, step=2), 3)
    assert not contains(IntDistribution(1, 9, step=2), 4)
    assert contains(CategoricalDistribution((None, 10.0)), None)


# -- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("optim.lr=5..1", "`optim.lr` must be a range whose lower end comes first, got '5..1'."),
        ("optim.lr=0..1:log", "must be a range above 0 where it is `:log`, got '0..1:log'."),
        ("optim.lr=-1..1:log", "above 0 where it is `:log`, got '-1..1:log'."),
        ("optim.lr=", "`optim.lr` must be choices of which none is empty, got ''."),
        ("batch_size=[]", "`batch_size` must be a list of one choice or more, got []."),
        ("batch_size=32,,64", "`batch_size` must be choices of which none is empty, got '32,,64'."),
        ("batch_size=2.5..8", "`batch_size` must be a range with whole ends, got '2.5..8'."),
        ("batch_size=32,2.5", "`batch_size` must be of type int, got '2.5'."),
        ("batch_size=2..32:2", "`low..high` or `low..high:log`, without a step, got '2..32:2'."),
        ("batch_size=32,32.0", "`batch_size` must be choices of which none is twice 32"),
        ("optim.lr=0.1,1e-1", "`optim.lr` must be choices of which none is twice 0.1"),
        ("adapter.rslora=true,True", "must be choices of which none is twice true, got"),
        ("adapter.rslora=0,1", "`adapter.rslora` must be of type bool, got '0'."),
        ("optim.lr=nan", "`optim.lr` must be a finite number, got 'nan'."),
        ("optim.lr=1,inf", "`optim.lr` must be a finite number, got 'inf'."),
        ("optim.lr=1..inf", "`optim.lr` must be a range with finite ends, got '1..inf'."),
        ("optim.lr=nan..1", "`optim.lr` must be a range with finite ends, got 'nan..1'."),
        ("batch_size=inf", "`batch_size` must be a finite number, got 'inf'."),
        ("batch_size=32,64:log", "must be a range such as `1..32:log` where it has `:log`"),
        ("optim.lr=1e-5...1e-2", "a range with two dots, as `low..high`, got '1e-5...1e-2'."),
        ("optim.lr=low..high", "with a number at each end, got 'low..high'."),
        ("optim.lr=1e-3-1e-2", "`optim.lr` must be of type float, got '1e-3-1e-2'."),
        ("optim.lr", "`--search` takes `field=value`, got 'optim.lr'."),
        ("batch_size=[32", "`batch_size` must be a list such as [32, 64], got '[32'."),
        ("batch_size=[[32]]", "`batch_size` must be one value a choice, got [32]."),
        ("batch_size=[yes, 2]", "`batch_size` must be no truth value, got True"),
        ("adapter.targets=qv,qx", "unknown choice `qx`. Did you mean `qv`?"),
        ("adapter.targets=1..3", "unknown choice `1..3`"),
        ("adapter.ranc=1,2", "unknown field `adapter.ranc`. Did you mean `adapter.rank`"),
        ("epochs=1..9", "`--search` takes no `epochs`: use `--epochs`."),
        ("seed=1,2", "`--search` takes no `seed`: use `--seed`."),
        ("task=retrieval", "`--search` takes no `task`: use `--draw`."),
        ("name=lora,coop", "`--search` takes no `name`: use `--adapter`."),
        # The config's own rules, at the ends and at each choice, also of two fields together.
        ("adapter.rank=0..8", "`adapter.rank` must be at least 1, got 0."),
        ("adapter.dropout=0..1", "`adapter.dropout` must be in [0, 1), got 1.0."),
        ("optim.lr=1e-3,0", "`optim.lr` must be above 0, got 0.0."),
        ("loss.mined_per_image=1..30", "`loss.mined_pool` must be at least `loss.mined_per_image`"),
    ],
)  # fmt: skip
def test_a_space_that_is_none_is_refused_before_any_work(word: str, sentence: str) -> None:
    with pytest.raises(CliptuneError) as error:
        check(word)
    assert sentence in str(error.value)


def test_two_ranges_that_cross_are_refused_though_each_is_fine_beside_the_recipe() -> None:
    pool, each = "loss.mined_pool=2..50", "loss.mined_per_image=1..5"
    assert check(pool).spaces
    assert check(each).spaces
    with pytest.raises(CliptuneError, match=r"`loss\.mined_pool` must be at least"):
        check(pool, each)
    # And what only the recipe's value would refuse is fine where that value is never drawn.
    assert check("temperature.low=150..200", "temperature.high=300..400").spaces


def test_a_field_is_searched_once_and_not_fixed_too() -> None:
    with pytest.raises(CliptuneError, match=r"`--search` takes `optim\.lr` once"):
        check("optim.lr=1..2", "optim.lr=3")
    with pytest.raises(CliptuneError, match="in `--search` or in `--set`, got"):
        check("optim.lr=1..2", set=("optim.lr=1e-4",))
    with pytest.raises(CliptuneError, match=r"`--set` takes `optim\.lr` once"):
        check(set=("optim.lr=1e-4", "optim.lr=1e-3"))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "must name adapters, each with fields and their ranges"),
        ("- lora\n", "must name adapters, each with fields and their ranges"),
        ("lora: 1..3\n", "got '1..3' for `lora`"),
        ("lora: [", "must be a YAML file in UTF-8, got: while parsing"),
        ("lora: !!python/object:os.system {}\n", "could not determine a constructor"),
        ("loras: {}\n", "unknown adapter `loras`. Did you mean `lora`?"),
        ("coop:\n  optim.lr: 1..2\n", "`coop` is for classification"),
        ("lora:\n  optim.lr: 1..2\nlora:\n  optim.lr: 2..3\n", "once, got it again in line 3"),
        ("lora:\n  optim.lr: 1..2\n  optim.lr: 2..3\n", "once, got it again in line 3"),
        ("lora:\n  optim.rate: 1..2\n", "unknown field `optim.rate`. Did you mean `optim.lr`"),
        ("lora:\n  optim: {lr: 1..2}\n", "unknown field `optim`"),
        ("lora:\n  1: 1..2\n", "unknown field `1`"),
        ("lora:\n  epochs: 1..9\n", "`--space` takes no `epochs`: use `--epochs`."),
        ("lora:\n  optim.lr: {low: 1, high: 2}\n", "`optim.lr` must be one value a choice, got {"),
        ("lora:\n  optim.lr:\n", "`optim.lr` must be of type float, got None."),
        ("lora:\n  optim.lr: [.nan]\n", "`optim.lr` must be a finite number, got nan."),
        ("lora:\n  adapter.rank: [true, 2]\n", "`adapter.rank` must be no truth value, got True"),
        ("lora:\n  adapter.rank: 2020-01-01\n", "`adapter.rank` must be one value a choice"),
        ("soft_prompt:\n  adapter.init: [1, two]\n", "must be text, got 1: put it in quotes"),
        ("soft_prompt:\n  adapter.init: off\n", "`adapter.init` must be no truth value, got False"),
        ("lora:\n  adapter.rank: &a [*a]\n", "`adapter.rank` must be one value a choice"),
        ("lora:\n", "`lora` must have a field of several values to be searched, got none"),
        ("lora:\n  adapter.rank: 4\n  optim.lr: 1..1\n", "a field of several values"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_space_is_refused_before_any_work(
    text: str, sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(CliptuneError) as error:
        of_file(tmp_path, text)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"lora: \xff\xfe")
    (tmp_path / "deep").write_text("[" * 5000)
    for name in ("missing", "latin", "deep", "."):
        with pytest.raises(CliptuneError, match="must be a YAML file in UTF-8"):
            check(space=tmp_path / name)


# -- the study --------------------------------------------------------------------------------


def claim(folder: Path, features: Path, *flags: str, **more: Any) -> dict[str, Any]:
    """What stands in `study.json` after these flags."""
    args = tune.Args(features, folder, adapter=("lora",), search=flags, **more)
    tune._claim(folder, args, tune_flags.check(args))
    found: dict[str, Any] = read_json(folder / "study.json")
    return found


def test_a_study_says_what_it_searches_and_another_space_is_another_study(
    tmp_path: Path, features: Path
) -> None:
    about = claim(tmp_path, features, "optim.lr=1e-4..1e-2:log", "temperature.scale=none,10")
    assert about["spaces"]["lora/optim.lr"] == "1e-4..1e-2:log"
    assert about["spaces"]["lora/temperature.scale"] == [None, 10.0]
    assert (
        claim(tmp_path, features, "temperature.scale=none,10", "optim.lr=0.0001..0.01:log") == about
    )
    with pytest.raises(CliptuneError) as error:
        claim(tmp_path, features, "optim.lr=1e-4..1e-3:log", "temperature.scale=none,10")
    assert (
        "its `spaces` is {'lora/optim.lr': '1e-4..1e-2:log'}, "
        "this one's {'lora/optim.lr': '1e-4..1e-3:log'}"
    ) in str(error.value)
    with pytest.raises(CliptuneError, match="holds another study"):
        claim(tmp_path, features)


def test_an_older_study_goes_on_where_no_space_is_given(tmp_path: Path, features: Path) -> None:
    about = claim(tmp_path, features)
    assert about["spaces"].keys() == {f"lora/{field}" for field in SPACES["lora"]["retrieval"]}
    del about["spaces"]
    write_hashed(tmp_path / "study.json", about)
    with pytest.raises(CliptuneError, match="holds another study: its `spaces` is None"):
        claim(tmp_path, features, "optim.lr=1..2")
    assert "spaces" in claim(tmp_path, features)


def test_what_is_fixed_is_not_said_to_be_searched(tmp_path: Path, features: Path) -> None:
    assert "lora/batch_size" not in claim(tmp_path, features, set=("batch_size=16",))["spaces"]


def test_choices_of_all_kinds_are_drawn_and_come_back_from_the_journal_as_they_are(
    tmp_path: Path,
) -> None:
    flags = ("temperature.scale=none,1,10", "adapter.rslora=true,false", "adapter.rank=1,2")
    search = check(*flags, trials=40, stop=False)
    asks = StudySearcher(open_study(tmp_path), search, tmp_path)
    seen: dict[str, set[str]] = {}
    for n in range(search.trials):
        for field, value in asks.suggest(f"ray{n}")["values"].items():
            seen.setdefault(field, set()).add(repr(value))
        asks.on_trial_complete(
            f"ray{n}", {"number": n, "done": True, "state": "failed", "reason": ""}
        )
    assert seen["temperature.scale"] == {"None", "1.0", "10.0"}
    assert seen["adapter.rslora"] == {"True", "False"}
    assert seen["adapter.rank"] == {"1", "2"}
    for trial in open_study(tmp_path).trials:
        drawn = {f"lora/{k}": v for k, v in trial.user_attrs["config"].items()}
        for name, value in trial.params.items():
            assert repr(drawn[name]) == repr(value)


def test_trials_of_another_optimizer_of_one_shape_train_one_by_one(
    tmp_path: Path, features: Path
) -> None:
    """`optim.kind` can be searched: a stack knows AdamW alone."""
    bench = Workbench(TrialSettings(features, tmp_path, METRIC, threads=1))
    values = {"name": "projection", "epochs": 1, "batch_size": 16, "optim.kind": "sgd"}
    crew = Crew(bench, Job(1, values, 0, ({"number": 2, "values": values, "reported": 0},)), ALONE)
    results = crew.advance(never)
    assert {n: one["state"] for n, one in results.items()} == {1: "finished", 2: "finished"}


# -- the command ------------------------------------------------------------------------------


def test_the_command_prints_what_tune_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space.run(space.Args(adapter=("lora", "coop")))
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed).keys() == {"lora", "coop"}
    assert "searches for classification" in printed
    space.run(space.Args(adapter=("lora",)))
    assert "searches for retrieval" in capsys.readouterr().out
    space.run(space.Args(task="classification"))
    assert list(yaml.safe_load(capsys.readouterr().out)) == adapters_for("classification")


def test_the_command_writes_a_file_and_never_over_one_that_was_edited(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = space.Args(adapter=("lora",), out=tmp_path / "new" / "space.yaml")
    assert args.out is not None
    space.run(args)
    assert f"next: edit it, then cliptune tune --space {args.out}" in capsys.readouterr().out
    assert check(space=args.out).space("lora") == SPACES["lora"]["retrieval"]
    space.run(args)
    assert "nothing to do" in capsys.readouterr().out
    args.out.write_text(args.out.read_text().replace("1e-5", "1e-6"))
    with pytest.raises(CliptuneError, match="`--out` must be a new file"):
        space.run(args)


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ({"adapter": ("loar",)}, "Did you mean `lora`?"),
        ({"adapter": ("lora", "lora")}, "must name each adapter once"),
        ({"adapter": ("coop",), "task": "retrieval"}, "`coop` is for classification"),
        ({"adapter": ("coop", "soft_prompt")}, "must share a task"),
    ],
)
def test_the_command_refuses(args: dict[str, Any], sentence: str) -> None:
    with pytest.raises(CliptuneError) as error:
        space.run(space.Args(**args))
    assert sentence in str(error.value)


def test_another_rule_of_early_stopping_is_another_study(tmp_path: Path, features: Path) -> None:
    about = claim(tmp_path, features, eta=4, grace=2)
    assert about["stopping"] == {"kind": "asha", "eta": 4, "grace": 2, "brackets": 1, "interval": 1}
    for other in ({}, {"eta": 4, "grace": 2, "brackets": 2}, {"scheduler": "median", "grace": 2}):
        with pytest.raises(CliptuneError, match="holds another study: its `stopping` is"):
            claim(tmp_path, features, **other)
    write_hashed(tmp_path / "study.json", {k: v for k, v in about.items() if k != "stopping"})
    assert claim(tmp_path, features, eta=4, grace=2)["stopping"] == about["stopping"]
