"""A run folder as one file, and back.

The file is a zip: ``featcache-run.json``, which has length and SHA-256 of everything else, then the files of the run in
the order of their names. Times are fixed, so the same run gives the same bytes. A fused run brings the runs along that
it is made of, in ``fused/0``, ``fused/1`` and so on, in the order of its weights.

What is unpacked may have been made by anybody. Only names that a run folder has are taken, nothing is longer than the
list says, and no file is written before all were checked.
"""

import hashlib
import io
import json
import logging
import re
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any, BinaryIO

import yaml

from featcache import __version__
from featcache.errors import ConfigError, ScoresError
from featcache.files import parse_json, quoted, readable_json
from featcache.manifest import Manifest
from heads.models.encoder_decoder import SPEAKER
from heads.runs import read_config
from pipelines.ensemble import fused_folders
from pipelines.provenance import LEARNT, LEARNT_SHA256
from pipelines.restore import read_specs
from pipelines.run_folders import CONTEXT, FUSED, FUSION_FILES, INPUTS, STREAMS, TRAINING_FILES

LIST = "featcache-run.json"
"""The file in a pack that lists the others."""

FORMAT = 1
_OF_A_RUN = frozenset(
    {"scores.csv", "validation_scores.csv", "metrics.json", "config.yaml", *TRAINING_FILES, *FUSION_FILES}
)
_OF_UTTERANCES = frozenset(
    {"scores.csv", "validation_scores.csv", "manifest.jsonl", "folds.json", INPUTS, LEARNT, "README.md", "log.txt"}
)  # the last two quote what the protocol checks found
_FUSED_RUN = re.compile(rf"{FUSED}/\d{{1,3}}/")
_EPOCH = (1980, 1, 1, 0, 0, 0)
_MOST_FILES, _LONGEST_LIST, _MOST_BYTES = 10_000, 4 * 2**20, 32 * 2**30
_CHUNK = 2**20

logger = logging.getLogger(__name__)


def pack(folder: Path, out: Path, without_utterances: bool = False, overwrite: bool = False) -> int:
    """Make one file of a run; a warning says which fine-tuned encoders, which stay out of it, it cannot do without.

    Args:
        folder: the run folder.
        out: the file to write.
        without_utterances: leave out what is of single utterances or speakers. What is left predicts; it cannot be
            compared, fused or reported, since it has no scores.
        overwrite: replace a file that is there.

    Returns:
        The file's size in bytes.

    Raises:
        ScoresError: the folder is not a run, a run that it is made of is missing, or a file of it is damaged.
        ConfigError: `out` is there already, or is a folder.
    """
    if out.is_dir() or (out.exists() and not overwrite):
        what = "is a folder" if out.is_dir() else "is there already"
        raise ConfigError(f"{str(out)!r} {what}. Give another --out{'' if out.is_dir() else ', or --overwrite'}.")
    files = _files(folder, without_utterances)
    encoders = _encoders(files)
    listed = {name: {"bytes": _length(one), "sha256": _sha256(one)} for name, one in files.items()}
    head = {"format": FORMAT, "featcache": __version__, "without_utterances": without_utterances, "files": listed}
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.parent / f".tmp-{out.name}"
    try:
        with zipfile.ZipFile(temporary, "w") as archive:
            for name, one in {LIST: readable_json(head), **files}.items():
                entry = zipfile.ZipInfo(name, _EPOCH)
                entry.create_system, entry.external_attr = 3, 0o644 << 16
                # Weights are noise: deflating them takes long and gains nothing.
                weights = name.endswith(".safetensors")
                entry.compress_type = zipfile.ZIP_STORED if weights else zipfile.ZIP_DEFLATED
                with archive.open(entry, "w", force_zip64=True) as target, _open(one) as source:
                    shutil.copyfileobj(source, target, _CHUNK)
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)
    for run, kinds in sorted(encoders.items()):
        named = " ".join(f"--set {kind}.checkpoint=RUN/encoders" for kind in sorted(kinds))
        logger.warning(
            "%s reads fine-tuned encoders of %r, which are not in it: hand on the folder 'encoders' of that run too. "
            "predict is told where it lies by %s; unpacked beside that run, it needs no telling.", out, run, named,
        )  # fmt: skip
    return out.stat().st_size


def _encoders(files: Mapping[str, Path | bytes]) -> dict[str, set[str]]:
    """Return the kinds of streams that packed runs read of fine-tuned encoders, by the name of the run that made these.

    Raises:
        ScoresError: what a run says of its streams is damaged.
    """
    found: dict[str, set[str]] = {}
    for one in files.values():
        if isinstance(one, Path) and one.name == STREAMS:
            specs, by_fold = read_specs(one.parent)
            for spec in (*specs.values(), *(spec for of_one in by_fold.values() for spec in of_one.values())):
                if spec.checkpoint and "tuned" in spec.checkpoint:
                    found.setdefault(str(spec.checkpoint["tuned"]), set()).add(spec.kind)
    return found


def _files(folder: Path, without_utterances: bool, below: str = "") -> dict[str, Path | bytes]:
    """Return the files of a run by their names in a pack, in order."""
    record = read_config(folder / "config.yaml") if folder.is_dir() else None
    if record is None:
        what = "no 'config.yaml' in it" if folder.is_dir() else "no such folder"
        raise ScoresError(f"{str(folder)!r} is not a run: there is {what}. Name the folder of a run.")
    if not (folder / "scores.csv").is_file() and not without_utterances:
        raise ScoresError(
            f"{str(folder)!r} has no scores: it is not finished, or came without. Finish it, or pack it with "
            "--without-utterances."
        )
    names = _OF_A_RUN - (_OF_UTTERANCES if without_utterances else set())
    found: dict[str, Path | bytes] = {below + name: folder / name for name in names if (folder / name).is_file()}
    if without_utterances:
        found[below + "config.yaml"] = _without_findings(record)
        if below + CONTEXT in found:
            found[below + CONTEXT] = _without_speakers(folder / CONTEXT)
    if below + "manifest.jsonl" in found:
        found[below + "manifest.jsonl"] = _without_audio(folder / "manifest.jsonl")
    if record.get("fused"):
        for number, one in enumerate(fused_folders(folder, record)):
            found |= _files(one, without_utterances, f"{below}{FUSED}/{number}/")
    return dict(sorted(found.items()))


def _without_findings(record: Mapping[str, Any]) -> bytes:
    """Return a configuration without what quotes utterances, findings of the protocol checks; leaks by kind alone."""
    leaks = [f"a leak that --allow {name} let pass" for name in record.get("allow") or ()]
    kept = {name: value for name, value in record.items() if name != LEARNT_SHA256}
    kept |= {"problems": [], "allowed_leaks": leaks if record.get("allowed_leaks") else []}
    return yaml.safe_dump(kept, sort_keys=False, allow_unicode=True).encode()


def _without_speakers(path: Path) -> bytes:
    """Return what scores depend on but for speakers' embeddings: a voice can be known again by its embedding."""
    from safetensors.numpy import load, save

    return save({name: value for name, value in load(path.read_bytes()).items() if not name.startswith(SPEAKER)})


def _without_audio(path: Path) -> bytes:
    rows = [{name: value for name, value in one.as_row().items() if name != "audio"} for one in Manifest.read(path)]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def unpack(file: Path, out: Path) -> None:
    """Make a run folder of a file.

    Args:
        file: what :func:`pack` made.
        out: the folder to make.

    Raises:
        ScoresError: the file is no pack, is damaged, or holds what is not of a run.
        ConfigError: `out` is there already.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{str(out)!r} is there already. Give --out a new folder.")
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(mkdtemp(prefix=".tmp-", dir=out.parent))
    try:
        _unpack(file, temporary)
        temporary.chmod(0o755)
        temporary.replace(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def opened(runs: Sequence[Path]) -> Iterator[list[Path]]:
    """Give the folder of each run; a packed one is unpacked for as long as it is needed."""
    with ExitStack() as stack:
        folders = []
        for one in runs:
            if one.is_file():
                folder = Path(stack.enter_context(TemporaryDirectory(prefix="featcache-run-"))) / one.stem
                folder.mkdir()
                _unpack(one, folder)
                one = folder
            folders.append(one)
        yield folders


def _unpack(file: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(file) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
            listed = _listed(file, archive, entries)
            for name, facts in listed.items():
                place = folder / name
                place.parent.mkdir(parents=True, exist_ok=True)
                digest, left = hashlib.sha256(), int(facts["bytes"])
                with archive.open(entries[name]) as source, place.open("wb") as target:
                    while chunk := source.read(_CHUNK):
                        left -= len(chunk)
                        if left < 0:
                            break
                        digest.update(chunk)
                        target.write(chunk)
                if left or digest.hexdigest() != facts["sha256"]:
                    raise _damaged(file, f"{name!r} is not what its list says")
    except FileNotFoundError:
        raise ScoresError(f"There is no file {str(file)!r}.") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, IsADirectoryError) as error:
        raise _damaged(file, str(error)) from None


def _listed(
    file: Path, archive: zipfile.ZipFile, entries: Mapping[str, zipfile.ZipInfo]
) -> dict[str, Mapping[str, Any]]:
    """Return what a pack holds, checked before anything of it is read."""
    if LIST not in entries:
        raise ScoresError(f"{str(file)!r} is not a packed run: it has no {LIST}. Make one with: featcache pack RUN.")
    if len(archive.infolist()) != len(entries) or len(entries) > _MOST_FILES:
        raise _damaged(file, "it holds a name twice, or far too many")
    if entries[LIST].file_size > _LONGEST_LIST:
        raise _damaged(file, f"{LIST} is far too long")
    try:
        head = parse_json(archive.read(LIST).decode())
        number, listed = int(head["format"]), dict(head["files"])
        sizes = {name: int(facts["bytes"]) for name, facts in listed.items()}
        digests = [str(facts["sha256"]) for facts in listed.values()]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _damaged(file, f"{LIST} cannot be read: {error!r}") from None
    if number > FORMAT:
        raise ScoresError(
            f"{str(file)!r} has format {number}; this featcache reads up to {FORMAT}. Install a newer one."
        )
    strange = sorted((set(entries) - {LIST}) ^ set(listed)) + [name for name in listed if not _is_of_a_run(name)]
    if strange:
        raise _damaged(file, f"it holds or lacks {quoted(strange[0])}, which its list or a run does not have")
    if len(digests) != len(sizes) or min(sizes.values(), default=0) < 0 or sum(sizes.values()) > _MOST_BYTES:
        raise _damaged(file, "its sizes are not those of a run")
    return listed


def _is_of_a_run(name: str) -> bool:
    while match := _FUSED_RUN.match(name):
        name = name[match.end() :]
    return name in _OF_A_RUN


def _damaged(file: Path, why: str) -> ScoresError:
    return ScoresError(f"{str(file)!r} is damaged, or no packed run: {why}. Get it again, or pack the run again.")


def _open(source: Path | bytes) -> BinaryIO:
    return io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")


def _length(source: Path | bytes) -> int:
    return len(source) if isinstance(source, bytes) else source.stat().st_size


def _sha256(source: Path | bytes) -> str:
    with _open(source) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  # any file will do
