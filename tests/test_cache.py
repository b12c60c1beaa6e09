"""What goes into a cache comes out of it, bit for bit, through both backends."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import h5py
import numpy as np
import pytest
import soundfile
import zarr
from makers import tone, write_corpus
from zarr.storage import LocalStore

import featcache
from featcache import Manifest, Utterance
from featcache.commit import StreamWriter, store
from featcache.errors import CacheError, ConfigError, StreamError, UnknownNameError
from featcache.extract import Options, Summary, extract
from featcache.stream import Extractor, Features, Stream, StreamSpec
from featcache.verify import verify

BACKENDS = ["zarr", "hdf5"]


@dataclass(frozen=True)
class Ramp(Stream):
    """A stream cheap enough to test the cache with: 3 layers, frames of 160 samples, 8 of each."""

    title: ClassVar[str] = "test"
    gain: float = 1.0

    @classmethod
    def kind(cls) -> str:
        return "ramp"

    def spec(self, dtype: str = "float16", compute_dtype: str = "float32") -> StreamSpec:
        return StreamSpec(
            kind="ramp", version=1, input="audio", settings={"gain": self.gain}, layers=("a", "b", "c"), dim=8,
            frame_shift_s=0.01, sample_rate_hz=16000, compute_dtype=compute_dtype, dtype=dtype,
            frame_arrays={"position": {"dtype": "int32", "shape": []}},
            utterance_arrays={"peak": {"dtype": "float32", "shape": []}},
        )  # fmt: skip

    def load(self, device: str, compute_dtype: str) -> "RampExtractor":
        return RampExtractor(self.gain)

    def num_frames(self, num_samples: int) -> int:
        return num_samples // 160


class RampExtractor(Extractor):
    def __init__(self, gain: float) -> None:
        self.gain = gain

    def extract(self, inputs: Any) -> list[Features]:
        result = []
        for samples in inputs:
            if len(samples) < 160:
                raise StreamError("it is too short")
            count = len(samples) // 160
            base = samples[: count * 160].reshape(count, 160)[:, :8]
            frames = np.stack([base, base * 2, base + 1]) * self.gain
            result.append(
                Features(
                    frames.astype(np.float32),
                    {"position": np.arange(count, dtype=np.int32)},
                    {"peak": np.abs(samples).max()},
                )
            )
        return result


def expected(manifest: Manifest, name: str, gain: float = 1.0) -> np.ndarray:
    samples, _ = soundfile.read(manifest.audio_path(manifest.utterance(name)), dtype="float32")
    return RampExtractor(gain).extract([samples])[0].frames


def run(manifest: Manifest, cache: Path, stream: Stream | None = None, part_bytes: int = 0, **options: Any) -> Summary:
    return extract(manifest, cache, stream or Ramp(), Options(device="cpu", **options))


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return write_corpus(tmp_path / "corpus", [0.3, 0.51, 0.2, 1.0, 0.25, 0.7])


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two or three utterances a part."""
    monkeypatch.setattr("featcache.plan.PART_SECONDS", 1.0)


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_put_then_get_is_bit_exact(
    tmp_path: Path, manifest: Manifest, backend: str, compress: bool, dtype: str
) -> None:
    summary = run(manifest, tmp_path / "cache", backend=backend, compress=compress, dtype=dtype)
    assert summary.computed == manifest.ids
    stream = featcache.open(tmp_path / "cache")["ramp"]
    assert stream.ids == sorted(manifest.ids)
    assert len(stream.indices) > 1
    for name in manifest.ids:
        frames = expected(manifest, name)
        assert np.array_equal(stream[name], frames.astype(dtype))
        assert stream[name].dtype == dtype
        assert np.array_equal(stream.window(name, 3, 7, [2, 0]), frames[[2, 0], 3:10].astype(dtype))
        assert np.array_equal(stream.window(name, 3, 7, [1]), frames[[1], 3:10].astype(dtype))
        assert np.array_equal(stream.frame_array("position", name), np.arange(frames.shape[1]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_frames_of_zeros_are_stored_like_any_others(tmp_path: Path, manifest: Manifest, backend: str) -> None:
    run(manifest, tmp_path / "cache", Ramp(gain=0.0), backend=backend)
    stream = featcache.open(tmp_path / "cache")["ramp"]
    for name in manifest.ids:
        assert stream[name].shape == expected(manifest, name).shape
        assert not stream[name].any()
    assert verify(tmp_path / "cache")[1] == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_stats_are_those_of_the_unrounded_frames(tmp_path: Path, manifest: Manifest, backend: str) -> None:
    run(manifest, tmp_path / "frames", backend=backend)
    run(manifest, tmp_path / "stats", backend=backend, tier="stats")
    ids = manifest.ids[::-1]
    mean, std = featcache.open(tmp_path / "frames")["ramp"].stats(ids)
    assert mean.shape == std.shape == (6, 3, 8)
    for row, name in enumerate(ids):
        frames = expected(manifest, name)
        np.testing.assert_allclose(mean[row], frames.mean(axis=1), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(std[row], frames.std(axis=1), rtol=1e-5, atol=1e-6)
    alone = featcache.open(tmp_path / "stats")["ramp"]
    assert all(np.array_equal(*pair) for pair in zip(alone.stats(ids), (mean, std), strict=True))
    with pytest.raises(CacheError, match="only the stats of 'u000' were kept.*--tier frames"):
        alone["u000"]


def test_frames_extracted_after_stats_complete_them(tmp_path: Path, manifest: Manifest) -> None:
    run(manifest, tmp_path / "cache", tier="stats")
    assert len(run(manifest, tmp_path / "cache", tier="frames").computed) == 6
    assert run(manifest, tmp_path / "cache", tier="stats").computed == []
    assert featcache.open(tmp_path / "cache")["ramp"]["u003"].shape == (3, 100, 8)


def test_int8_errs_by_at_most_half_a_step(tmp_path: Path, manifest: Manifest) -> None:
    run(manifest, tmp_path / "cache", dtype="int8")
    stream = featcache.open(tmp_path / "cache")["ramp"]
    for name in manifest.ids:
        frames = expected(manifest, name)
        step = np.abs(frames).max(axis=1, keepdims=True) / 127
        assert (np.abs(stream[name] - frames) <= 0.5001 * step).all()
        assert np.array_equal(stream.window(name, 1, 4, [2]), stream[name][[2], 1:5])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_second_extract_computes_nothing_and_changes_no_byte(
    tmp_path: Path, manifest: Manifest, backend: str
) -> None:
    run(manifest, tmp_path / "cache", backend=backend)
    before = tree(tmp_path / "cache")
    again = run(manifest, tmp_path / "cache", backend=backend)
    assert (again.computed, len(again.present)) == ([], 6)
    assert tree(tmp_path / "cache") == before
    shuffled = Manifest(list(manifest)[::-1], manifest.folder)
    assert run(shuffled, tmp_path / "cache", backend=backend).computed == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_run_that_lost_any_part_is_completed_to_the_same_bytes(
    tmp_path: Path, manifest: Manifest, backend: str
) -> None:
    run(manifest, tmp_path / "cache", backend=backend)
    whole = tree(tmp_path / "cache")
    stream = featcache.open(tmp_path / "cache")["ramp"]
    for name, index in stream.indices.items():
        (stream.path / f"{name}.json").unlink()
        again = run(manifest, tmp_path / "cache", backend=backend)
        assert again.computed == [entry.id for entry in index.entries]
        assert tree(tmp_path / "cache") == whole


def test_added_utterances_alone_are_computed(tmp_path: Path, manifest: Manifest) -> None:
    fewer = manifest.select(["u001", "u004"])
    run(fewer, tmp_path / "cache")
    summary = run(manifest, tmp_path / "cache")
    assert sorted(summary.computed) == ["u000", "u002", "u003", "u005"]
    assert summary.present == ["u001", "u004"]


def test_one_changed_recording_is_computed_again_and_says_why(tmp_path: Path, manifest: Manifest) -> None:
    run(manifest, tmp_path / "cache")
    samples, _ = soundfile.read(manifest.folder / "u002.wav", dtype="float32")
    old = expected(manifest, "u002")
    samples[5] += 0.25
    soundfile.write(manifest.folder / "u002.wav", samples, 16000, subtype="FLOAT")
    summary = run(manifest, tmp_path / "cache")
    assert (summary.computed, summary.changed) == (["u002"], {"u002": "its audio changed"})
    stream = featcache.open(tmp_path / "cache")["ramp"]
    assert np.array_equal(stream["u002"], expected(manifest, "u002").astype("float16"))
    samples[5] -= 0.25
    soundfile.write(manifest.folder / "u002.wav", samples, 16000, subtype="FLOAT")
    assert run(manifest, tmp_path / "cache").computed == ["u002"]
    assert np.array_equal(featcache.open(tmp_path / "cache")["ramp"]["u002"], old.astype("float16"))
    assert run(manifest, tmp_path / "cache").computed == []


def test_another_container_path_or_label_is_a_hit(tmp_path: Path, manifest: Manifest) -> None:
    run(manifest, tmp_path / "cache")
    (tmp_path / "moved").mkdir()
    rows = []
    for utterance in manifest:
        samples, rate = soundfile.read(manifest.audio_path(utterance), dtype="float32")
        soundfile.write(tmp_path / "moved" / f"{utterance.id}.w64", samples, rate, subtype="FLOAT")
        rows.append(Utterance(utterance.id, f"{utterance.id}.w64", label="other", extra={"note": 1}))
    assert run(Manifest(rows, tmp_path / "moved"), tmp_path / "cache").computed == []


def test_another_setting_is_another_stream_and_the_kind_is_then_ambiguous(tmp_path: Path, manifest: Manifest) -> None:
    run(manifest, tmp_path / "cache")
    run(manifest, tmp_path / "cache", Ramp(gain=2.0))
    cache = featcache.open(tmp_path / "cache")
    assert len(cache) == 2
    with pytest.raises(CacheError, match=r"give the full name(.|\n)*settings.gain: .* -> "):
        cache["ramp"]
    assert np.array_equal(cache[Ramp(gain=2.0).spec().name]["u001"], expected(manifest, "u001", 2.0).astype("float16"))


def test_a_value_beyond_float16_fails_alone_and_names_layer_and_remedy(tmp_path: Path, manifest: Manifest) -> None:
    loud = tone(0.4) / np.abs(tone(0.4)).max() * 2
    soundfile.write(manifest.folder / "u001.wav", loud, 16000, subtype="FLOAT")
    summary = run(manifest, tmp_path / "cache", Ramp(gain=60000.0))
    assert sorted(summary.failures) == [name for name in manifest.ids if name in summary.failures]
    assert "u001" in summary.failures
    assert "beyond float16's 65504" in summary.failures["u001"]
    assert "--dtype float32" in summary.failures["u001"]
    assert run(manifest, tmp_path / "cache", Ramp(gain=60000.0), dtype="float32").failures == {}


def test_a_failure_is_kept_in_the_index_tried_again_and_forgotten_once_mended(
    tmp_path: Path, manifest: Manifest
) -> None:
    good = (manifest.folder / "u003.wav").read_bytes()
    (manifest.folder / "u003.wav").write_bytes(b"not audio")
    summary = run(manifest, tmp_path / "cache")
    assert len(summary.computed) == 5
    assert "cannot be decoded" in summary.failures["u003"]
    stream = featcache.open(tmp_path / "cache")["ramp"]
    assert list(stream.failures) == ["u003"]
    with pytest.raises(CacheError, match="'u003' could not be computed: .*cannot be decoded"):
        stream["u003"]
    before = tree(tmp_path / "cache")
    assert list(run(manifest, tmp_path / "cache").failures) == ["u003"]
    assert tree(tmp_path / "cache") == before
    (manifest.folder / "u003.wav").write_bytes(good)
    assert run(manifest, tmp_path / "cache").computed == ["u003"]
    assert featcache.open(tmp_path / "cache")["ramp"].failures == {}


def test_plain_zarr_reads_every_array_without_a_warning(tmp_path: Path, manifest: Manifest) -> None:
    run(manifest, tmp_path / "cache", backend="zarr")
    stream = featcache.open(tmp_path / "cache")["ramp"]
    group = zarr.open_group(str(stream.path), mode="r")
    assert sorted(name for name, _ in group.groups()) == sorted(stream.indices)
    assert sorted(group.attrs["utterances"]) == manifest.ids
    for name, at in group.attrs["utterances"].items():
        part, row, start = group[at["part"]], at["row"], at["start"]
        assert part.attrs["ids"][row] == name
        assert part["offsets"][row] == start
        assert np.array_equal(part["frames"][:, start : start + at["num_frames"]], stream[name])
        assert np.array_equal(part["mean"][row], stream.stats([name])[0][0])
        assert part["peak"][row] == stream.array("peak", [name])[0]


def test_plain_h5py_reads_every_array_through_one_file(tmp_path: Path, manifest: Manifest) -> None:
    run(manifest, tmp_path / "cache", backend="hdf5")
    stream = featcache.open(tmp_path / "cache")["ramp"]
    moved = shutil.copytree(tmp_path / "cache", tmp_path / "moved") / stream.name
    with h5py.File(moved / "all.h5") as file:
        ids = [name.decode() for name in file["ids"]]
        assert sorted(ids) == manifest.ids
        # A time of modification would make the same parts another file.
        assert [h5py.h5g.get_objinfo(file[name].id).mtime for name in file] == [0] * len(file)
        for name, start, count, row in zip(ids, file["start"], file["num_frames"], file["row"], strict=True):
            assert np.array_equal(file["frames"][:, start : start + count], stream[name])
            assert np.array_equal(file["std"][row], stream.stats([name])[1][0])
            assert np.array_equal(file["position"][start : start + count], np.arange(count))
            assert file["peak"][row] == stream.array("peak", [name])[0]
    part = next(moved.glob("part-*.h5"))
    with h5py.File(part) as file:
        assert set(file) == {"frames", "ids", "layers", "mean", "offsets", "peak", "position", "std"}


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_is_left_aside(tmp_path: Path, manifest: Manifest, backend: str) -> None:
    run(manifest, tmp_path / "cache", backend=backend)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [Ramp().spec().name]
    assert not list((tmp_path / "cache").rglob(".tmp*"))


@pytest.mark.parametrize("whole", [False, True], ids=["parts missing", "nothing missing"])
def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path: Path, manifest: Manifest, whole: bool) -> None:
    if whole:  # the writer was killed after its last part, as it renewed the views for other programs
        run(manifest, tmp_path / "cache")
    left = tmp_path / "cache" / ".tmp" / "0123456789abcdef"
    left.mkdir(parents=True)
    (left / "lock").touch()
    (left / "half-a-part").write_bytes(b"x" * 100)
    run(manifest, tmp_path / "cache")
    assert not (tmp_path / "cache" / ".tmp").exists()


def test_lookups_that_fail_say_what_exists(tmp_path: Path, manifest: Manifest) -> None:
    with pytest.raises(CacheError, match="There is no cache .*featcache extract"):
        featcache.open(tmp_path / "nothing")
    run(manifest, tmp_path / "cache")
    cache = featcache.open(tmp_path / "cache")
    with pytest.raises(UnknownNameError, match="no stream .*'rampp'.*Known: ramp-"):
        cache["rampp"]
    with pytest.raises(UnknownNameError, match="no utterance .*'u999'.*u000"):
        cache["ramp"]["u999"]
    with pytest.raises(CacheError, match="frames 10 to 1000 were asked of 'u000', which has 30"):
        cache["ramp"].window("u000", 10, 990)
    with pytest.raises(UnknownNameError, match="no array .*'peek'.*peak"):
        cache["ramp"].array("peek")
    with pytest.raises(UnknownNameError, match="no layer .*'3'"):
        cache["ramp"].window("u000", 0, 1, [3])


def test_options_that_do_not_exist_are_refused_before_anything_runs() -> None:
    for wrong in ({"tier": "half"}, {"dtype": "float8"}, {"compute_dtype": "int4"}, {"batch_size": 0}):
        with pytest.raises(ConfigError):
            Options(**wrong)  # type: ignore[arg-type]


def test_an_index_that_was_changed_is_refused(tmp_path: Path, manifest: Manifest) -> None:
    run(manifest, tmp_path / "cache")
    path = next((tmp_path / "cache").glob("*/part-*.json"))
    values = json.loads(path.read_bytes())
    values["entries"][0]["num_frames"] += 1
    path.write_text(json.dumps(values))
    with pytest.raises(CacheError, match="does not match its name.*run the same extract again"):
        featcache.open(tmp_path / "cache")["ramp"]


def test_plain_zarr_reads_little_more_than_a_window_needs(tmp_path: Path) -> None:
    """Windows of 96 frames at random places: at most 1.5 times their bytes; whole layers: at most 1.1 times."""
    generator = np.random.default_rng(0)
    spec = StreamSpec("wide", 1, "audio", {}, ("a", "b", "c"), 64)
    frames = generator.standard_normal((3, 2000, 64)).astype(np.float32)
    with StreamWriter(tmp_path, spec, "zarr", "frames") as writer:
        writer.commit([store("u", "0", 0, Features(frames), spec, "frames")], {})
    stream = featcache.open(tmp_path)["wide"]
    reads = CountingStore(stream.path / next(iter(stream.indices)) / "frames", read_only=True)
    array = zarr.open_array(reads, mode="r")
    reads.num_bytes = 0
    places = generator.integers(0, 2000 - 96, size=40)
    for start in places:
        assert np.array_equal(array[:, start : start + 96], stream.window("u", int(start), 96))
    needed = len(places) * 3 * 96 * 64 * 2
    assert needed <= reads.num_bytes <= 1.5 * needed
    reads.num_bytes = 0
    assert np.array_equal(array[1], stream.window("u", 0, 2000, [1])[0])
    assert 2000 * 64 * 2 <= reads.num_bytes <= 1.1 * 2000 * 64 * 2


class CountingStore(LocalStore):
    """A store that counts the bytes it gives out."""

    num_bytes = 0

    async def get(self, *arguments: Any, **options: Any) -> Any:
        value = await super().get(*arguments, **options)
        self.num_bytes += 0 if value is None else len(value)
        return value

    async def get_partial_values(self, *arguments: Any, **options: Any) -> Any:
        values = await super().get_partial_values(*arguments, **options)
        self.num_bytes += sum(len(value) for value in values if value is not None)
        return values
