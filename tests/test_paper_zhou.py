"""Zhou et al.: the numbers are those of the text, and the presets train as it says, or say that they do not."""

import re
from pathlib import Path

import pytest

from featcache import registry
from featcache.settings import build
from featcache.stream import Stream
from featcache.streams.log_mel import LogMel
from heads.fit_settings import FitSettings
from heads.head import Head
from heads.models.finetune import Finetune
from heads.models.vgg import Vgg
from pipelines.config import extract_config, preset_names, read_preset, train_config
from pipelines.paper import FusionOf, read_paper
from pipelines.train_heads import load_head

PRESETS = [name for name in preset_names() if name.startswith("zhou-")]
PAPERS_OWN = [name for name in PRESETS if not name.endswith(("-laptop", "-demo"))]
DEFINITIONS = {"zhou-audio": "mfcc_22khz", "zhou-audio-mel": "mel128_22khz", "zhou-audio-soft": "mfcc_22khz"}


@pytest.fixture(scope="module")
def text() -> str:
    folder = Path(__file__).resolve().parents[2] / "shared" / "seeds"
    texts = list(folder.glob("004*.txt"))
    if not texts:
        pytest.skip("the papers' texts are not at hand")
    return texts[0].read_text(encoding="utf-8")


def test_table_3_is_that_of_the_text(text: str) -> None:
    [table] = [one for one in read_paper("zhou").tables if one.name == "Table 3"]
    printed = re.findall(r"^(?:Text|Audio|Text \+ Audio)\t(.*)$", text, flags=re.MULTILINE)
    numbers = [[float(number) for number in line.split()] for line in printed]
    assert len(numbers) == 3
    assert [row.paper["wa"].mean for row in table.rows] == [number for line in numbers for number in line]
    assert [row.cited for row in table.rows] == [True, True, False] * 3
    assert [row.run for row in table.rows if row.run] == ["text", "audio", "both"]


def test_classes_and_their_number_are_those_of_table_1(text: str) -> None:
    corpus = read_paper("zhou").corpus
    counts = re.findall(r"^(Anger|Frustration|Happiness|Neutral|Sadness)\t(\d+)", text, flags=re.MULTILINE)
    assert len(counts) == len(corpus.classes) == 5
    assert sum(int(count) for _, count in counts) == corpus.utterances
    assert corpus.classes == ("angry", "frustrated", "happy", "neutral", "sad")


def test_year_and_doi_are_not_made_up(text: str) -> None:
    paper = read_paper("zhou")
    assert (paper.year, paper.doi) == (None, "")
    assert paper.citation.endswith("neither venue nor year nor DOI.")
    assert "doi" not in text.lower()


def test_both_modalities_are_joined_by_linear_layers_on_validation() -> None:
    both = read_paper("zhou").fusions["both"]
    assert both == FusionOf(("text", "audio"), "joint", "wa", notes=("joint",))


def test_dropout_and_activations_of_table_2_are_of_no_particular_model(text: str) -> None:
    assert "Activation\tReLU, LeakyReLU\t" in text
    assert "Dropout\t0.6\t" in text
    paper = read_paper("zhou")
    for key, note in (("text", "text"), ("audio", "sizes")):
        assert note in paper.runs[key].notes
        assert "dropout of 0.6 for no particular model, and lists ReLU beside LeakyReLU" in paper.notes[note]
    head = load_head(train_config(read_preset("zhou-text"), {}, []))
    assert isinstance(head, Finetune)
    assert head.pooled_dropout == 0.1


@pytest.mark.parametrize("name", PAPERS_OWN)
def test_the_papers_presets_train_as_the_text_says(name: str, text: str) -> None:
    config = train_config(read_preset(name), {}, [])
    assert config.folds == "stratified:70/20/10"
    assert config.fit == FitSettings(
        unit="epoch", steps=15, eval_every=1, batch_size=32, learning_rate=(1.5e-4,), weight_decay=(1e-3,),
        gradient_clip=None, select_by="wa",
    )  # fmt: skip
    assert config.votes == ("votes" if name == "zhou-audio-soft" else "")
    assert "learning rate of 1.5e-4 and a weight decay of 1e-3" in text.replace("\n", " ")
    number = re.search(r"accuracy (\d\d\.\d) there", read_preset(name)["about"])
    assert number is None or number.group(1) in text


@pytest.mark.parametrize("name", PRESETS)
def test_presets_build_and_small_ones_say_so(name: str) -> None:
    preset = read_preset(name)
    for kind, settings in extract_config(preset, [], {}, []).streams.items():
        stream = build(registry.load("featcache.streams", kind, Stream), settings, f"stream {kind}")
        if isinstance(stream, LogMel):
            assert stream.definition == DEFINITIONS[name.removesuffix("-laptop")]
    config = train_config(preset, {}, [])
    assert config.streams == tuple(preset["extract"]["streams"])
    head = build(registry.load("heads.models", config.head, Head), config.settings, f"head {config.head}")
    if isinstance(head, Vgg):
        assert (head.dropout, len(head.widths), head.length) == (0.6, 5, "longest")
        assert (head == Vgg()) == (name in PAPERS_OWN)
    if name not in PAPERS_OWN:
        assert re.search(r"not the paper's numbers|seeded random BERT", preset["about"])


def test_every_run_has_a_form_for_a_laptop_and_one_for_the_demo() -> None:
    for of in read_paper("zhou").runs.values():
        assert of.preset in PAPERS_OWN
        assert of.laptop is not None
        assert of.demo is not None
        assert "demo:" not in str(read_preset(of.laptop))
