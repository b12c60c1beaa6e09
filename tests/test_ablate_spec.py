"""What a file of an ablation means: the runs it expands to, their names, and how mistakes are told."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from featcache.errors import ConfigError, UnknownNameError
from pipelines.ablate_names import folder_name
from pipelines.ablate_spec import Ablation, ablation_names, read_ablation
from pipelines.config import train_config

BASE = {"head": "linear_probe", "streams": ["toy"], "fit": {"steps": 20}}


def read(folder: Path, values: Any, *overrides: str, **options: Any) -> Ablation:
    path = folder / "mine.yaml"
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
    return read_ablation(str(path), lambda streams: {"toy": 4}[streams[0]], overrides, options)


def names(ablation: Ablation) -> list[str]:
    return [run.name for run in ablation.runs]


def test_a_grid_is_every_combination(tmp_path: Path) -> None:
    found = read(tmp_path, {"base": BASE, "grid": {"settings.layer": [0, 2], "fit.learning_rate": [0.01, 0.001]}})
    assert names(found) == [
        "layer=0,learning_rate=0.01", "layer=0,learning_rate=0.001", "layer=2,learning_rate=0.01",
        "layer=2,learning_rate=0.001",
    ]  # fmt: skip
    assert found.varied == ("settings.layer", "fit.learning_rate")
    last = found.runs[-1].config
    wanted = ["settings.layer=2", "fit.learning_rate=1e-3", "fit.steps=20"]
    assert last == train_config({}, {"head": "linear_probe", "streams": ("toy",)}, wanted)
    assert last.digest() == train_config({}, {"head": "linear_probe", "streams": ("toy",)}, wanted).digest()


def test_nested_keys_mean_what_dotted_ones_mean(tmp_path: Path) -> None:
    dotted = {"base": {"head": "linear_probe", "streams": "toy", "fit.steps": 20}, "grid": {"settings.layer": [1]}}
    nested = {"base": BASE, "grid": {"settings": {"layer": [1]}}}
    assert read(tmp_path, dotted).runs == read(tmp_path, nested).runs


def test_every_layer_ranges_and_numbers_as_people_write_them(tmp_path: Path) -> None:
    text = """
        base: {head: linear_probe, streams: toy}
        seeds: 3..5
        grid: {settings.layer: every, fit.learning_rate: [1e-3, [1e-2, 1e-1]]}
    """
    found = read(tmp_path, text)
    assert len(found.runs) == 4 * 2 * 3
    assert found.runs[0].config.fit.learning_rate == (0.001,)
    assert found.runs[12].config.fit.learning_rate == (0.01, 0.1)
    assert found.runs[12].name == "layer=0,learning_rate=0.01+0.1,seed=3"
    assert [run.seed for run in found.runs[:3]] == [3, 4, 5] == [run.config.fit.seed for run in found.runs[:3]]
    assert {run.config.settings["layer"] for run in found.runs} == {0, 1, 2, 3}
    assert {run.label for run in found.runs if run.seed == 4} == {run.label for run in found.runs if run.seed == 5}


def test_further_runs_have_names_and_grids_of_their_own(tmp_path: Path) -> None:
    base = {**BASE, "settings": {"layer": 1}}
    runs = {
        "svm": {"head": "svm"},
        "mix": {"head": "layer_mix", "grid": {"settings.projector_dim": [8, 16]}},
        "same": None,
    }
    found = read(tmp_path, {"base": base, "runs": runs})
    assert names(found) == ["svm", "mix,projector_dim=8", "mix,projector_dim=16", "same"]
    assert found.runs[0].config.settings == {}  # another head does not take over settings
    assert found.runs[3].config.settings == {"layer": 1}
    listed = read(tmp_path, {"base": base, "runs": [{"head": "svm"}, {"name": "own", "settings": {"layer": 3}}]})
    assert names(listed) == ["head=svm", "own"]
    both = read(tmp_path, {"base": base, "grid": {"settings.layer": [0]}, "runs": {"svm": {"head": "svm"}}})
    assert names(both) == ["layer=0", "svm"]


def test_nothing_that_differs_is_one_run(tmp_path: Path) -> None:
    assert names(read(tmp_path, {"base": BASE})) == ["base"]
    assert names(read(tmp_path, {"base": BASE, "seeds": [1, 2]})) == ["base,seed=1", "base,seed=2"]


def test_seeds_may_stand_in_the_grid(tmp_path: Path) -> None:
    found = read(tmp_path, {"base": BASE, "grid": {"fit.seed": [0, 1], "settings.layer": [2]}})
    assert names(found) == ["layer=2,seed=0", "layer=2,seed=1"]
    assert found.varied == ("settings.layer",)
    with pytest.raises(ConfigError, match="there are seeds, and fit.seed beside them"):
        read(tmp_path, {"base": BASE, "seeds": [0], "grid": {"fit.seed": [0, 1]}})


def test_a_preset_lies_below_the_base_and_may_differ(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(yaml.safe_dump({"train": {"head": "layer_mix", "fit": {"steps": 7, "seed": 5}}}))
    preset = str(tmp_path / "p.yaml")
    found = read(tmp_path, {"base": {"preset": preset, "streams": "toy", "fit.seed": 6}})
    assert (found.runs[0].config.head, found.runs[0].config.fit.steps, found.runs[0].config.fit.seed) == (
        "layer_mix",
        7,
        6,
    )
    varied = read(tmp_path, {"base": {"streams": "toy"}, "grid": {"preset": ["superb", preset]}})
    assert [run.config.fit.steps for run in varied.runs] == [30000, 7]
    assert len(set(names(varied))) == 2


def test_options_and_set_change_the_base_and_never_what_differs(tmp_path: Path) -> None:
    spec = {"base": BASE, "grid": {"settings.layer": [0, 1]}}
    found = read(tmp_path, spec, "fit.steps=5", "folds=speaker", device="cpu")
    assert {(run.config.fit.steps, run.config.folds, run.config.device) for run in found.runs} == {
        (5, "speaker", "cpu")
    }
    with pytest.raises(ConfigError, match="--set settings.layer cannot say it for all"):
        read(tmp_path, spec, "settings.layer=3")
    with pytest.raises(ConfigError, match="--set fit.seed cannot say it for all"):
        read(tmp_path, {**spec, "seeds": [0, 1]}, "fit.seed=3")
    with pytest.raises(ConfigError, match="Did you mean 'fit.steps'"):
        read(tmp_path, spec, "fit.stepz=5")


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"gird": {}}, "the file has no key 'gird'. Did you mean 'grid'?"),
        ({"base": {"haed": "svm"}}, "base has no key 'haed'. Did you mean 'head'?"),
        ({"base": {"learning_rate": 1}}, "Did you mean 'fit.learning_rate'?"),
        ({"base": {"fit": {"setps": 1}}}, "base has no key 'fit.setps'. Did you mean 'fit.steps'?"),
        ({"base": BASE, "grid": {"settings.layers": [1]}}, "has no key 'layers'. Did you mean 'layer'?"),
        ({"base": BASE, "grid": {"settings.layer": ["x"]}}, "run 'layer=x': head linear_probe: layer"),
        ({"base": BASE, "grid": {"settings.layer": []}}, "grid.settings.layer has no values"),
        ({"base": BASE, "grid": {"settings.layer": [1, 1]}}, "grid.settings.layer has 1 twice"),
        ({"base": BASE, "grid": {"settings.layer": "5..1"}}, "'5..1' has no numbers"),
        ({"base": {**BASE, "head": "smv"}}, "run 'base': There is no"),
        ({"base": BASE, "seeds": ["a"]}, "seeds are whole numbers"),
        ({"base": BASE, "runs": {"a/b": None}}, "'a/b' in runs is to be that of a folder"),
        ({"base": BASE, "runs": [{"name": "a"}, {"name": "A"}]}, "two runs would be called 'A'"),
        ({"base": BASE, "runs": {"results.csv": None}}, "a run cannot be called 'results.csv'"),
        ({"base": BASE, "fuse": {"f": {"runs": ["bas"]}}}, "no run is called 'bas'. Did you mean 'base'?"),
        ({"base": BASE, "fuse": {"f": {"runs": ["base"]}}}, "fuse.f needs two or more runs"),
        ({"base": BASE, "fuse": {"f": {"runz": ["base"]}}}, "fuse.f has no key 'runz'. Did you mean 'runs'?"),
        ({"base": BASE, "fuse": {"f": {"runs": ["base"], "space": "lin"}}}, "fuse.f: space"),
        ([1], "the file takes values by name"),
        ("base: {head: svm, head: svm}", "the key 'head' stands twice"),
        ("base: [", "is not valid YAML"),
    ],
)
def test_mistakes_are_told_with_the_place_and_what_is_meant(tmp_path: Path, values: Any, told: str) -> None:
    with pytest.raises(ConfigError, match="(?s)mine.*" + re.escape(told)):
        read(tmp_path, values)


def test_an_ablation_that_there_is_not_is_told_with_those_that_there_are() -> None:
    with pytest.raises(UnknownNameError, match="demo, laptop, layers"):
        read_ablation("dmeo", lambda _: 1)
    with pytest.raises(ConfigError, match="There is no ablation file 'none.yaml'"):
        read_ablation("none.yaml", lambda _: 1)


def test_names_are_safe_short_and_unique(tmp_path: Path) -> None:
    values = ["a/b", "a b", "../x", "ö" * 200, "ö" * 199 + "x", "<b>&", "plain"]
    found = read(tmp_path, {"base": BASE, "grid": {"label": values}})
    for name in names(found):
        assert len(name.encode()) <= 130
        assert not set(name) & set("/\\<>&: ")
        assert not name.startswith(".")
    assert len(set(names(found))) == len(values)
    assert found.runs[-1].name == "label=plain"
    assert folder_name(["a", "b"]) == "a,b"


def test_keys_that_end_alike_are_named_in_full(tmp_path: Path) -> None:
    found = read(tmp_path, {"base": {**BASE, "streams": "toy"}, "grid": {"validation": [0.1], "fit.select_by": ["wa"]}})
    assert names(found) == ["validation=0.1,select_by=wa"]
    runs = {
        "base": {"streams": "toy"},
        "grid": {"fit.balanced": [True]},
        "runs": {"s": {"head": "svm", "settings.balanced": False}},
    }
    assert names(read(tmp_path, runs)) == ["fit.balanced=true", "s"]


def test_a_fusion_is_made_for_each_seed_over_names_and_patterns(tmp_path: Path) -> None:
    spec = {
        "base": BASE, "seeds": [0, 1],
        "runs": {"a": {"grid": {"settings.layer": [0, 1]}}, "b": {"head": "svm"}},
        "fuse": {
            "all": {"runs": ["b", "*"], "weights": "search", "select_by": "wa"},
            "two": {"runs": ["a,layer=1", "b"], "weights": [0.6, 1]},
            "even": {"runs": ["a*", "b,seed=1"]},
        },
    }  # fmt: skip
    with pytest.raises(
        ConfigError, match=r"fuse.two.weights is search, stack, joint, or a number for each of its 2 runs"
    ):
        read(tmp_path, {**spec, "fuse": {"two": {"runs": ["a,layer=1", "b"], "weights": [1]}}})
    found = {fusion.name: fusion for fusion in read(tmp_path, spec).fusions}
    assert list(found) == ["all,seed=0", "all,seed=1", "two,seed=0", "two,seed=1", "even,seed=0", "even,seed=1"]
    assert found["all,seed=1"].runs == ("b,seed=1", "a,layer=0,seed=1", "a,layer=1,seed=1")
    assert (found["all,seed=1"].weights, found["all,seed=1"].options.select_by) == ("search", "wa")
    assert found["two,seed=0"].weights == "0.6,1.0"
    assert found["even,seed=0"].runs == ("a,layer=0,seed=0", "a,layer=1,seed=0")
    assert found["even,seed=1"].weights == "1.0,1.0,1.0"


@pytest.mark.parametrize("name", ablation_names())
def test_every_ablation_of_the_package_can_be_read(name: str) -> None:
    found = read_ablation(name, lambda _: 7)
    assert found.about
    assert len(found.runs) >= (100 if name == "demo" else 2)
