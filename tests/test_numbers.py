"""Numbers that a stored type cannot hold are refused by name, what rounding costs is known, and bad ones are found."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from makers import tone, write_corpus

from featcache import dtypes
from featcache import open as open_cache
from featcache.commit import Stored, StreamWriter, store
from featcache.errors import CacheError, StreamError
from featcache.extract import Options, Summary, extract
from featcache.index import Entry, Index
from featcache.stream import Extractor, Features, Stream, StreamSpec
from featcache.verify import verify
from pipelines import show

LAYERS = ("first", "second", "third")
DIM = 16


def spec(dtype: str = "float16", **arrays: Any) -> StreamSpec:
    return StreamSpec("given", 1, "audio", {}, LAYERS, DIM, dtype=dtype, **arrays)


@dataclass(frozen=True)
class Given(Stream):
    """The frames of ``normal()``, times what is set for some layers of the second utterance."""

    title: ClassVar[str] = "test"
    factors: tuple[float, float, float] = (1.0, 1.0, 1.0)

    @classmethod
    def kind(cls) -> str:
        return "given"

    def spec(self, dtype: str = "float16", compute_dtype: str = "float32") -> StreamSpec:
        return spec(dtype, utterance_arrays={"peak": {"dtype": "float32", "shape": []}})

    def load(self, device: str, compute_dtype: str) -> Extractor:
        return GivenExtractor(self.factors)


class GivenExtractor(Extractor):
    def __init__(self, factors: tuple[float, float, float]) -> None:
        self.factors = factors

    def extract(self, inputs: Any) -> list[Features]:
        factors = self.factors if len(inputs[0]) == len(tone(0.5)) else (1.0, 1.0, 1.0)
        frames = normal() * np.array(factors, np.float32)[:, None, None]
        return [Features(frames, utterance_arrays={"peak": np.nanmax(frames)})]


def normal(num_frames: int = 40, seed: int = 0) -> np.ndarray:
    """Return ``(layers, frames, dim)`` float32 around one."""
    return np.random.default_rng(seed).standard_normal((3, num_frames, DIM)).astype(np.float32)


def run(folder: Path, stream: Stream, **options: Any) -> Summary:
    manifest = write_corpus(folder / "corpus", [0.3, 0.5, 0.4])
    return extract(manifest, folder / "cache", stream, Options(device="cpu", **options))


def tiny(frames: np.ndarray, layer: int, scale: float, dims: slice = slice(None)) -> np.ndarray:
    scaled = frames.copy()
    scaled[layer, :, dims] *= np.float32(scale)
    return scaled


# float16: too large, too small.


@pytest.mark.parametrize("scale", [1e-5, 1e-6, 1e-8, 1e-30])
@pytest.mark.parametrize("layer", [0, 2])
def test_a_layer_too_small_for_float16_fails_by_name_and_alone(tmp_path: Path, scale: float, layer: int) -> None:
    factors = [1.0, 1.0, 1.0]
    factors[layer] = scale
    stream = Given(tuple(factors))
    summary = run(tmp_path, stream)
    assert list(summary.failures) == ["u001"]
    reason = summary.failures["u001"]
    assert reason.startswith(f"layer '{LAYERS[layer]}' is too small for float16, its largest value being ")
    assert "16 of its 16 dimensions lose more than 0.1 %" in reason
    assert reason.endswith("Store this stream with --dtype float32.")
    for dtype in ("float32", "int8"):
        assert run(tmp_path, stream, dtype=dtype).failures == {}


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_a_layer_that_float16_keeps_passes(scale: float) -> None:
    frames = tiny(normal(), 1, scale)
    stored, _ = dtypes.encode(frames, "float16", LAYERS)
    assert np.array_equal(stored, frames.astype(np.float16))


def test_small_dimensions_beside_a_few_large_ones_are_not_hidden_by_them() -> None:
    frames = tiny(normal(), 1, 1e-5, slice(1, None))
    lost = np.linalg.norm(frames[1] - frames[1].astype(np.float16).astype(np.float32)) / np.linalg.norm(frames[1])
    assert lost < dtypes.MOST_LOST
    with pytest.raises(StreamError, match="'second' is too small for float16.* 15 of its 16 dimensions"):
        dtypes.encode(frames, "float16", LAYERS)


def test_a_few_small_dimensions_are_harmless_and_more_than_a_tenth_are_not() -> None:
    assert dtypes.encode(tiny(normal(), 0, 1e-8, slice(1)), "float16", LAYERS)
    with pytest.raises(StreamError, match="'first' is too small for float16.* 2 of its 16 dimensions"):
        dtypes.encode(tiny(normal(), 0, 1e-8, slice(2)), "float16", LAYERS)


def test_small_values_in_dimensions_that_reach_further_are_harmless() -> None:
    frames = normal()
    frames[:, 5:] *= np.float32(1e-8)  # a pause
    frames[:, ::2, 3] = 1e-12
    assert dtypes.encode(frames, "float16", LAYERS)


def test_many_small_frames_behind_one_larger_are_a_loss() -> None:
    frames = 1e-7 * normal(num_frames=4000)
    frames[:, 0] = 1e-4  # above float16's smallest normal number
    with pytest.raises(StreamError, match="too small for float16.* 16 of its 16 dimensions"):
        dtypes.encode(frames, "float16", LAYERS)


def test_zeros_are_not_lost_and_not_counted() -> None:
    frames = np.zeros((3, 4, DIM), np.float32)
    assert dtypes.encode(frames, "float16", LAYERS)
    frames[1, :, 0] = 1.0
    assert dtypes.encode(frames, "float16", LAYERS)
    frames[1, 2, 7] = 1e-7
    with pytest.raises(StreamError, match="'second' is too small for float16.* 1 of its 2 dimensions"):
        dtypes.encode(frames, "float16", LAYERS)


@given(st.integers(0, 2**32 - 1), st.integers(-14, 14), st.integers(1, 300))
def test_rounding_alone_is_never_refused(seed: int, exponent: int, num_frames: int) -> None:
    generator = np.random.default_rng(seed)
    sizes = 2.0 ** generator.uniform(-14, exponent, (3, num_frames, DIM))
    frames = (sizes * generator.choice([-1, 1], sizes.shape)).clip(-65504, 65504).astype(np.float32)
    stored, _ = dtypes.encode(frames, "float16", LAYERS)
    assert all(dtypes.losses(*pair).max() <= 2.0**-11 for pair in zip(frames, stored, strict=True))


@given(st.integers(0, 2**32 - 1), st.integers(1, 400))
def test_a_layer_is_refused_exactly_where_the_rule_says_so(seed: int, num_frames: int) -> None:
    generator = np.random.default_rng(seed)
    frames = generator.standard_normal((3, num_frames, DIM)) * 10.0 ** generator.uniform(-7, -3, (3, 1, DIM))
    frames = (frames * (generator.random((3, 1, DIM)) < 0.8)).astype(np.float32)
    lost = np.array([dtypes.losses(layer, layer.astype(np.float16)) > 2.0**-10 for layer in frames]).sum(axis=1)
    expected = (lost > 0.1 * frames.any(axis=1).sum(axis=1)).any()
    try:
        dtypes.encode(frames, "float16", LAYERS)
    except StreamError:
        assert expected
    else:
        assert not expected


@pytest.mark.parametrize("layer", range(3))
def test_a_layer_too_large_for_float16_fails_by_name_and_alone(tmp_path: Path, layer: int) -> None:
    factors = [1.0, 1.0, 1.0]
    factors[layer] = 1e6
    [(name, reason)] = run(tmp_path, Given(tuple(factors))).failures.items()
    assert name == "u001"
    assert f"layer '{LAYERS[layer]}' reaches" in reason
    assert "--dtype float32" in reason


@pytest.mark.parametrize("scale", [1e-44, 1e-40, 1e-30, 1e30, 3e37])
def test_losses_are_told_at_any_scale(scale: float) -> None:
    frames = (normal()[0] * scale).astype(np.float32)
    assert (dtypes.losses(frames, frames) == 0).all()
    assert (dtypes.losses(frames, np.zeros_like(frames))[frames.any(axis=0)] == 1).all()


# NaN and infinity.


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_frames_that_are_not_finite_fail_by_name_and_alone(tmp_path: Path, dtype: str, bad: float) -> None:
    summary = run(tmp_path, Given((1.0, bad, 1.0)), dtype=dtype)
    assert summary.computed == ["u000", "u002"]
    assert list(summary.failures) == ["u001"]
    assert "layer 'second' has 640 values that are NaN or infinite, first in frame 0" in summary.failures["u001"]
    [index] = open_cache(tmp_path / "cache")["given"].indices.values()
    assert index.failures == summary.failures


ARRAYS: Mapping[str, Any] = {
    "frame_arrays": {"position": {"dtype": "float32", "shape": [2]}},
    "utterance_arrays": {"peak": {"dtype": "float32", "shape": []}},
}


def features(**arrays: Any) -> Features:
    given = {"position": np.zeros((40, 2), np.float32), "peak": np.float32(1)} | arrays
    return Features(normal(), {"position": given["position"]}, {"peak": given["peak"]})


@pytest.mark.parametrize("tier", ["frames", "stats"])
@pytest.mark.parametrize(
    ("name", "values"), [("peak", np.float32(np.nan)), ("position", np.full((40, 2), np.inf, np.float32))]
)
def test_further_arrays_that_are_not_finite_are_refused(tier: str, name: str, values: np.ndarray) -> None:
    with pytest.raises(StreamError, match=f"array '{name}' holds NaN or infinite values"):
        store("u", "0", 0, features(**{name: values}), spec(**ARRAYS), tier)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("position", np.zeros((39, 2), np.float32), r"float32 of shape \(39, 2\), expected float32 of \(40, 2\)"),
        ("position", np.zeros((40, 2), np.int32), r"int32 of shape \(40, 2\), expected float32"),
        ("peak", np.zeros(1, np.float32), r"float32 of shape \(1,\), expected float32 of \(\)"),
    ],
)
def test_arrays_that_are_not_what_the_spec_declares_are_refused(name: str, values: np.ndarray, message: str) -> None:
    with pytest.raises(StreamError, match=f"array '{name}' is {message}"):
        store("u", "0", 0, features(**{name: values}), spec(**ARRAYS), "frames")


# int8.


def by_hand(frames: np.ndarray) -> list[float]:
    """Return the relative error of each layer, dimension by dimension."""
    errors = []
    for layer in frames.astype(np.float64):
        squares = []
        for values in layer.T:
            scale = np.float32(np.abs(values).max()) / np.float32(127)
            kept = np.rint(values / scale) * scale
            squares.append(((values - kept) ** 2).sum() / (values**2).sum())
        errors.append(np.sqrt(np.mean(squares)))
    return errors


@pytest.mark.parametrize("backend", ["zarr", "hdf5"])
def test_the_index_keeps_what_int8_cost_each_layer(tmp_path: Path, backend: str) -> None:
    run(tmp_path, Given((1e-8, 1.0, 1e6)), dtype="int8", backend=backend)
    stream = open_cache(tmp_path / "cache")["given"]
    [index] = stream.indices.values()
    assert list(index.int8_errors) == ["u000", "u001", "u002"]
    for each in index.int8_errors.values():
        assert each == pytest.approx(by_hand(normal()), rel=1e-3)
    step = np.abs(normal()).max(axis=1) / 127
    assert max(index.int8_errors["u000"]) < 2 * (step / np.linalg.norm(normal(), axis=1) * np.sqrt(40 / 12)).max()
    assert verify(tmp_path / "cache") == (3, [])


def test_frames_that_stand_out_cost_the_others_of_their_dimension() -> None:
    frames = normal()
    frames[1, 7, :] *= 30
    calm, loud, _ = dtypes.layer_errors(frames, *dtypes.encode(frames, "int8", LAYERS))
    assert loud > 2 * calm


def test_layers_that_int8_keeps_exactly_have_no_error() -> None:
    frames = np.zeros((3, 4, DIM), np.float32)
    frames[1] = 127.0
    frames[2, :, 0] = 1.0
    errors = dtypes.layer_errors(frames, *dtypes.encode(frames, "int8", LAYERS))
    assert errors[:2] == (0.0, 0.0)
    assert errors[2] < 1e-7


def test_info_tells_what_int8_cost(tmp_path: Path) -> None:
    run(tmp_path, Given(), dtype="int8")
    cache = tmp_path / "cache"
    [index] = open_cache(cache)["given"].indices.values()
    errors = index.int8_errors["u000"]
    worst = LAYERS[errors.index(max(errors))]
    expected = f"int8: relative error {100 * np.mean(errors):.2g} % in the mean, at most {100 * max(errors):.2g} %"
    assert f"{expected} ('u002', {worst})" in show.info(cache)


@pytest.mark.parametrize("options", [{}, {"dtype": "float32"}, {"dtype": "int8", "tier": "stats"}], ids=str)
def test_nothing_is_kept_or_told_where_no_int8_is_stored(tmp_path: Path, options: dict[str, Any]) -> None:
    run(tmp_path, Given(), **options)
    stream = open_cache(tmp_path / "cache")["given"]
    [path] = stream.path.glob("part-*.json")
    assert "int8_errors" not in json.loads(path.read_text())
    assert "int8:" not in show.info(tmp_path / "cache")


def test_an_index_without_errors_has_the_name_and_the_bytes_that_it_always_had(tmp_path: Path) -> None:
    index = Index(
        "given-00000000", "zarr", "frames", (Entry("u", "0" * 32, 0, 4, "00000000"),),
        arrays={"frames": {"dtype": "int8", "shape": [3, 4, 16]}},
    )  # fmt: skip
    assert index.name == "part-c7dddf0efaddc3de"
    index.write(tmp_path, tmp_path)
    path = tmp_path / f"{index.name}.json"
    assert sorted(json.loads(path.read_text())) == [
        "arrays", "backend", "compressed", "entries", "failures", "format", "stream", "tier"
    ]  # fmt: skip
    assert Index.read(path).int8_errors == {}


def test_errors_are_part_of_the_name_and_survive_a_reading(tmp_path: Path) -> None:
    index = Index("given-0", "zarr", "frames", (), int8_errors={"u": (0.01, 0.0213)})
    index.write(tmp_path, tmp_path)
    path = tmp_path / f"{index.name}.json"
    assert Index.read(path).int8_errors == {"u": [0.01, 0.0213]}
    path.write_text(path.read_text().replace("0.0213", "0.0113"))
    with pytest.raises(CacheError, match="does not match its name"):
        Index.read(path)


def test_an_int8_cache_made_before_errors_were_kept_is_read_and_a_hit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dtypes, "layer_errors", lambda *_: ())
    run(tmp_path, Given(), dtype="int8")
    monkeypatch.undo()
    assert run(tmp_path, Given(), dtype="int8").computed == []
    assert "int8:" not in show.info(tmp_path / "cache")
    assert verify(tmp_path / "cache") == (3, [])


# verify.


def commit(folder: Path, stream: StreamSpec, **changed: Any) -> str:
    """Commit a whole utterance and one with something changed after its checks, as no writer here does."""
    good = store("good", "0", 0, features(), stream, "frames")
    bad = replace(store("bad", "1", 0, features(), stream, "frames"), **changed)
    with StreamWriter(folder, stream, "zarr", "frames") as writer:
        return writer.commit([good, bad], {})


def spoilt(values: np.ndarray) -> np.ndarray:
    values = np.array(values)
    values.flat[-1] = np.nan
    return values


@pytest.mark.parametrize("name", ["frames", "position", "peak", "mean", "std", "scale"])
def test_verify_names_what_is_not_finite_though_its_checksum_fits(tmp_path: Path, name: str) -> None:
    stream = spec("int8" if name == "scale" else "float16", **ARRAYS)
    whole: Stored = store("bad", "1", 0, features(), stream, "frames")
    arrays = {
        kind: {key: spoilt(values) if key == name else values for key, values in getattr(whole, kind).items()}
        for kind in ("frame_arrays", "utterance_arrays")
    }
    commit(tmp_path, stream, **({"frames": spoilt(whole.frames)} if name == "frames" else arrays))
    [problem] = verify(tmp_path)[1]
    assert f"array '{name}' of 'bad' holds NaN or infinite values. Delete part-" in problem.what
    assert verify(tmp_path, full=False)[1] == []


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("length", [39, 41])
def test_verify_counts_frames_against_the_index(tmp_path: Path, full: bool, length: int) -> None:
    commit(tmp_path, spec(**ARRAYS), frame_arrays={"position": np.zeros((length, 2), np.float32)})
    [problem] = verify(tmp_path, full)[1]
    assert f"array 'position' is of length {40 + length}, where its utterances give 80" in problem.what


def test_measures_of_an_aligner_may_be_unknown(tmp_path: Path) -> None:
    stream = replace(spec("float64", utterance_arrays={"snr": {"dtype": "float64", "shape": []}}), kind="alignment")
    unknown = Features(normal().astype(np.float64), utterance_arrays={"snr": np.array(np.nan)})
    with StreamWriter(tmp_path, stream, "zarr", "frames") as writer:
        writer.commit([store("u", "0", 0, unknown, stream, "frames")], {})
    assert verify(tmp_path) == (1, [])
