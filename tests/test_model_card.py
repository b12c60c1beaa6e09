"""The model card: what the run knows, in the Hub's form, the same bytes for the same run, and no markup from names."""

from dataclasses import replace
from typing import Any

import numpy as np
import yaml
from speech_task import SPECS
from test_report import HOSTILE, make_scores

from featcache import Manifest, Utterance
from heads.metrics import evaluate
from heads.protocol import Fold
from heads.scores import Scores
from pipelines.model_card import card, plain

RECORD: dict[str, Any] = {
    "head": "linear_probe",
    "settings": {"layer": 1},
    "fit": {"steps": 20, "select_by": "ua"},
    "folds": "speaker",
    "label": "label",
    "num_utterances": 60,
    "speaker_independent": True,
    "synthetic": False,
    "allowed_leaks": [],
    "chosen": {"1": {"layer": 1, "step": 20}},
    "versions": {"featcache": "0.1.0", "torch": "2.9"},
}
DIGEST = "ab" * 32
SPEC = replace(SPECS["toy"], checkpoint={"name": "facebook/wav2vec2-base", "weights_sha256": DIGEST})
FOLDS = [Fold(name, ("u0",), ("u1",), ("u2",)) for name in ("1", "2", "3")]
PEOPLE = Manifest([Utterance(f"u{number}", speaker=f"s{number % 4}") for number in range(60)])


def parts(text: str) -> tuple[dict[str, Any], str]:
    """Return the YAML header and the text of a card."""
    before, header, body = text.split("---\n", 2)
    assert before == ""
    return yaml.safe_load(header), body


def test_the_header_is_what_the_hub_reads() -> None:
    header, _ = parts(card(RECORD, evaluate(make_scores()), {"toy": SPEC}, FOLDS, PEOPLE))
    assert header == {
        "library_name": "featcache",
        "tags": ["speech-emotion-recognition", "linear_probe", "toy"],
        "metrics": ["recall", "accuracy", "f1"],
        "pipeline_tag": "audio-classification",
        "base_model": ["facebook/wav2vec2-base"],
    }
    header, _ = parts(card(RECORD, evaluate(make_scores()), {"text": replace(SPEC, input="text", checkpoint=None)}))
    assert header["pipeline_tag"] == "text-classification"
    assert "base_model" not in header


def test_the_card_holds_the_runs_numbers() -> None:
    scores = make_scores()
    metrics = evaluate(scores)
    _, body = parts(card(RECORD, metrics, {"toy": SPEC}, FOLDS, PEOPLE))
    ua, std = 100 * metrics["mean"]["ua"], 100 * (metrics["std"]["ua"] or 0)
    assert f"| UA (unweighted average recall) | {ua:.1f} ± {std:.1f} |" in body
    right = scores.predicted == scores.reference
    for number, name in enumerate(scores.classes):
        recall = 100 * np.mean(right[scores.reference == number])
        assert f"| {name} | 20 | {recall:.1f} |" in body
    for fold in metrics["folds"]:
        assert f"| {fold['fold']} | {fold['n']} | {100 * fold['ua']:.1f} | {100 * fold['wa']:.1f} |" in body
    assert "Guessing gives a UA of 33.3." in body
    assert "60 utterances of 4 speakers" in body
    assert "leave one speaker out); 3 of them" in body
    assert DIGEST in body
    assert "Weights and settings were chosen on a validation part of each fold, by UA." in body
    assert "featcache predict RUN recording.wav\n" in body
    assert "torch: '2.9'" in body
    assert card(RECORD, metrics, {"toy": SPEC}, FOLDS, PEOPLE) == card(RECORD, metrics, {"toy": SPEC}, FOLDS, PEOPLE)


def test_leaks_and_synthetic_speech_are_in_bold() -> None:
    record = {**RECORD, "synthetic": True, "allowed_leaks": ["2 speakers are in train and in test"]}
    _, body = parts(card({**record, "speaker_independent": False}, evaluate(make_scores()), {"toy": SPEC}))
    assert "**Trained on synthetic speech: its results say nothing about people.**" in body
    assert "**Allowed leak, so the results are optimistic: 2 speakers are in train and in test**" in body
    assert "**Not speaker-independent**" in body
    _, clean = parts(card(RECORD, evaluate(make_scores()), {"toy": SPEC}))
    assert "**" not in clean


def test_one_fold_has_no_spread_and_a_class_that_is_not_tested_no_recall() -> None:
    scores = Scores(("a", "b"), ("1", "1"), ("x", "y"), ("x", "y", "z"), np.array([[0.8, 0.1, 0.1], [0.6, 0.2, 0.2]]))
    _, body = parts(card(RECORD, evaluate(scores), {}))
    assert "| WA (accuracy) | 50.0 |" in body
    assert "| z | 0 | not tested |" in body
    assert "nan" not in body


def test_what_names_hold_is_no_markup() -> None:
    hostile = f"{HOSTILE} | a\n# b ``` [c](d)"
    scores = make_scores(folds=(hostile, "2"), classes=("angry", hostile))
    record = {**RECORD, "head": hostile, "allowed_leaks": [hostile], "chosen": {hostile: {"layer": hostile}}}
    text = card({**record, "settings": {"x": hostile}}, evaluate(scores), {hostile: SPEC}, FOLDS)
    _, body = parts(text)
    assert "<script>" not in body.partition("```yaml")[0]
    assert "\n# b" not in body
    assert body.count("```") == 4  # two blocks, as ever
    rows = [line for line in body.splitlines() if line.startswith("| ")]
    cells = {line.replace("\\\\", "").replace("\\|", "").count("|") for line in rows}
    assert cells <= {3, 4, 5}
    assert plain("a*b_c|d") == r"a\*b\_c\|d"


def test_a_fusion_has_a_card_too() -> None:
    record = {"head": "fusion", "fused": ["speech", "text"], "weights": [0.6, 1.0], "space": "prob"}
    header, body = parts(card(record, evaluate(make_scores()), {}))
    assert header["tags"] == ["speech-emotion-recognition", "fusion"]
    assert "# Late fusion of speech, text" in body
    assert "featcache predict RUN" in body
    assert "featcache predict" not in card({**record, "weights": "stack"}, evaluate(make_scores()), {})
