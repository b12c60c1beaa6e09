"""The model card of a run: what was trained on what, how it was judged, and how to use it, in Markdown.

The form is the Hugging Face Hub's (https://huggingface.co/docs/hub/model-cards): a YAML header for machines, then text.
It says what the run itself knows and nothing else; so it has no licence, which its user adds. The same run gives the
same bytes.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from featcache.manifest import Manifest
from featcache.stream import StreamSpec
from heads.fold_kinds import plain_kind
from heads.folds import Fold
from heads.metrics import Metrics

NAME = "README.md"
"""The card's file in a run folder."""

_METRICS = {"ua": "UA (unweighted average recall)", "wa": "WA (accuracy)", "macro_f1": "macro-F1",
            "weighted_f1": "weighted F1"}  # fmt: skip
_FOLDS = {"session": "leave one session out", "speaker": "leave one speaker out", "split": "the corpus's own split"}
_LIMITS = (
    "- The results hold for the data above, and for no other corpus, language, recording or way of speaking.",
    "- A class is what the labels of the training data call so. It is no knowledge of what a person feels: do not "
    "judge, hire, grade or watch people by it.",
    "- Probabilities are not calibrated unless a report says so.",
)
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|#~$])")


def card(
    record: Mapping[str, Any],
    metrics: Metrics,
    specs: Mapping[str, StreamSpec],
    folds: Sequence[Fold] = (),
    manifest: Manifest | None = None,
) -> str:
    """Return the card of a run.

    Args:
        record: how it was made, as ``config.yaml`` holds it.
        metrics: of its test scores.
        specs: streams that it read, by the names it gave them; none for a fusion.
        folds: its folds.
        manifest: its utterances.
    """
    sections = [
        _header(record, specs),
        _about(record, metrics, specs),
        _section("Results", _results(metrics)),
        _section("Protocol", _protocol(record, folds, manifest)),
        _section("Features", _streams(specs)),
        _section("How to use", _use(record, specs)),
        _section("Limits", _LIMITS),
        _section("Settings and versions", _settings(record)),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def plain(text: object) -> str:
    """Return a text on one line, with nothing in it that Markdown would take for markup."""
    return _SPECIAL.sub(r"\\\1", " ".join(str(text).split()))


def _section(title: str, lines: Iterable[str]) -> str:
    body = "\n".join(lines)
    return f"## {title}\n\n{body}" if body else ""


def _header(record: Mapping[str, Any], specs: Mapping[str, StreamSpec]) -> str:
    inputs = {spec.input for spec in specs.values()}
    names = [spec.checkpoint["name"] for spec in specs.values() if spec.checkpoint]
    on_hub = sorted({name for name in names if re.fullmatch(r"[\w.-]+/[\w.-]+", name)})
    values: dict[str, Any] = {
        "library_name": "featcache",
        "tags": [
            "speech-emotion-recognition",
            str(record.get("head")),
            *sorted({spec.kind for spec in specs.values()}),
        ],
        "metrics": ["recall", "accuracy", "f1"],
    }
    if inputs and "cache" not in inputs:
        values["pipeline_tag"] = "text-classification" if inputs == {"text"} else "audio-classification"
    if on_hub:
        values["base_model"] = on_hub
    return f"---\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True)}---"


def _about(record: Mapping[str, Any], metrics: Metrics, specs: Mapping[str, StreamSpec]) -> str:
    classes = "; ".join(map(plain, metrics["classes"]))
    folds = f"{len(metrics['folds'])} model{'s' if len(metrics['folds']) > 1 else ''}, one for each fold"
    if record.get("head") == "fusion":
        title = f"Late fusion of {', '.join(map(plain, record.get('fused', [])))}"
        what = f"The weighted scores of {len(record.get('fused', []))} runs, made with featcache."
    else:
        title = f"{plain(record.get('head'))} on {', '.join(map(plain, specs)) or 'codes of another run'}"
        what = f"A light classifier on features of frozen models, trained with featcache: {folds}."
    lines = [f"# {title}", "", what, "", f"Classes, in order: {classes}. Label: {plain(record.get('label', 'label'))}."]
    lines += ["", "**Trained on synthetic speech: its results say nothing about people.**"] * bool(
        record.get("synthetic")
    )
    lines += ["", "**Begun with random weights where trained ones belong: its results are none.**"] * bool(
        record.get("random_weights")
    )
    for leak in record.get("allowed_leaks", []):
        lines += ["", f"**Allowed leak, so the results are optimistic: {plain(leak)}**"]
    return "\n".join(lines)


def _results(metrics: Metrics) -> list[str]:
    folds = metrics["folds"]
    spread = f"mean ± std over {len(folds)} folds" if len(folds) > 1 else "one fold"
    chance = 100 / len(metrics["classes"])
    lines = [f"On {metrics['pooled']['n']} test utterances, in percent. Guessing gives a UA of {chance:.1f}.", ""]
    lines += _table(
        ["metric", spread],
        [[title, _spread(metrics["mean"].get(name), metrics["std"].get(name))] for name, title in _METRICS.items()],
    )
    counts = metrics["pooled"]["confusion"]
    recalls = [
        [plain(name), str(sum(row)), f"{100 * row[at] / sum(row):.1f}" if sum(row) else "not tested"]
        for at, (name, row) in enumerate(zip(metrics["classes"], counts, strict=True))
    ]
    lines += ["", *_table(["class", "test utterances", "recall over all folds"], recalls)]
    rows = [[plain(one["fold"]), str(one["n"]), f"{100 * one['ua']:.1f}", f"{100 * one['wa']:.1f}"] for one in folds]
    return [*lines, "", *_table(["fold", "test utterances", "UA", "WA"], rows)]


def _spread(mean: float | None, std: float | None) -> str:
    if mean is None:
        return "unknown"
    return f"{100 * mean:.1f}" + ("" if std is None else f" ± {100 * std:.1f}")


def _protocol(record: Mapping[str, Any], folds: Sequence[Fold], manifest: Manifest | None) -> list[str]:
    lines = []
    if record.get("num_utterances"):
        speakers = {utterance.speaker for utterance in manifest or () if utterance.speaker is not None}
        known = f" of {len(speakers)} speaker{'s' if len(speakers) > 1 else ''}" if speakers else ""
        corpora = sorted({str(one.extra["corpus"]) for one in manifest or () if one.extra.get("corpus")})
        named = f" (corpus: {', '.join(map(plain, corpora))})" if corpora else ""
        copies = record.get("num_copies")
        also = f", and {copies} augmented copies of them, in training alone" if copies else ""
        lines.append(f"- Data: {record['num_utterances']} utterances{known}{named}{also}.")
    if record.get("folds"):
        kind = plain_kind(str(record["folds"]))
        told = f"{plain(kind)} ({_FOLDS[kind]})" if kind in _FOLDS else plain(kind)
        lines.append(f"- Folds: {told}; {len(folds) or 'unknown'} of them.")
    independent = record.get("speaker_independent")
    if independent is not None:
        lines.append(
            "- Speaker-independent: no speaker is on both sides of a split." if independent
            else "- **Not speaker-independent**, or some speakers are unknown."
        )  # fmt: skip
    chosen = record.get("chosen") or {}
    if any("step" in values for values in chosen.values()):
        by = str((record.get("fit") or {}).get("select_by", "")).upper()
        lines.append(f"- Weights and settings were chosen on a validation part of each fold, by {plain(by)}.")
    for fold, values in chosen.items():
        shown = ", ".join(f"{plain(name)} {plain(value)}" for name, value in values.items())
        lines.append(f"- Of the model of fold {plain(fold)}: {shown or 'nothing was chosen'}.")
    if record.get("dropped"):
        lines.append(f"- Left out: {record['dropped']} utterances that a stream lacks.")
    return lines


def _streams(specs: Mapping[str, StreamSpec]) -> list[str]:
    rows = []
    for name, spec in specs.items():
        source = "none"
        if spec.checkpoint:
            digest = spec.checkpoint.get("weights_sha256", "")
            source = plain(spec.checkpoint["name"]) + (f" (weights SHA-256 {digest})" if digest else "")
        rows.append([plain(name), spec.name, f"{len(spec.layers)} x {spec.dim}", source])
    return _table(["stream", "full name", "layers x dim", "checkpoint"], rows) if rows else []


def _use(record: Mapping[str, Any], specs: Mapping[str, StreamSpec]) -> list[str]:
    fused_by_weights = record.get("head") == "fusion" and record.get("weights") not in ("stack", "joint")
    if not (specs or fused_by_weights) or record.get("standardise"):
        return []
    texts = [spec for spec in specs.values() if spec.input == "text"]
    audio = "" if specs and len(texts) == len(specs) else " recording.wav"
    said = ' --text "what is said"' if texts else ""
    return [
        "RUN is the folder that this file lies in. Its features are extracted by the code it was trained with.",
        "",
        "```",
        f"featcache predict RUN{audio}{said}",
        "```",
    ]


def _settings(record: Mapping[str, Any]) -> list[str]:
    kept = {
        name: record[name] for name in ("head", "settings", "fit", "weights", "space") if record.get(name) is not None
    }
    versions = record.get("versions") or {}
    text = yaml.safe_dump({**kept, **({"versions": versions} if versions else {})}, sort_keys=False, allow_unicode=True)
    return ["```yaml", text.replace("```", "` ` `").rstrip("\n"), "```"]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]
