"""Every corpus in one sweep, and the small acted ones in detail."""

import ast
import logging
from collections import Counter
from dataclasses import fields
from pathlib import Path

import pytest
import trees

from featcache import registry, settings
from featcache.audio import decode
from featcache.corpus import EMOTIONS, Corpus
from featcache.errors import ConfigError, CorpusError
from featcache.manifest import Manifest

PACKAGE = "featcache.corpora"
NAMES = registry.names(PACKAGE)
ACTED = ["crema_d", "emodb", "ravdess"]


def corpus(name: str, **options: str) -> Corpus:
    return settings.build(registry.load(PACKAGE, name, Corpus), options, f"corpus {name}")


@pytest.mark.parametrize("name", NAMES)
def test_a_corpus_says_what_it_is_and_how_to_get_it(name):
    cls = registry.load(PACKAGE, name, Corpus)
    assert cls.citation.startswith("@")
    assert cls.citation.count("{") == cls.citation.count("}")
    for text in (cls.title, cls.licence, cls.url, cls.layout, cls.__doc__):
        assert text
        assert text.strip() == text or text is cls.__doc__


@pytest.mark.parametrize("name", NAMES)
def test_a_corpus_documents_each_option_and_has_a_default_for_it(name):
    cls = registry.load(PACKAGE, name, Corpus)
    assert cls.__dataclass_params__.frozen
    settings.build(cls, {}, name)
    for option in fields(cls):
        assert option.type
        assert f"        {option.name}: " in cls.__doc__, f"{name}: the option {option.name} is not documented"


@pytest.mark.parametrize("name", NAMES)
def test_the_guide_to_the_data_has_every_corpus(name):
    guide = (Path(__file__).parents[1] / "data" / "README.md").read_text(encoding="utf-8")
    assert f"featcache corpus {name} " in guide
    assert registry.load(PACKAGE, name, Corpus).url in " ".join(guide.split())


@pytest.mark.parametrize("name", NAMES)
def test_a_reader_imports_no_heavy_package_and_no_other_corpus(name):
    source = Path(registry.load(PACKAGE, name, Corpus).utterances.__code__.co_filename).read_text(encoding="utf-8")
    imported = {
        alias
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [item.name for item in node.names])
    }
    assert not {alias.split(".")[0] for alias in imported} & {"torch", "librosa", "pandas", "transformers", "sklearn"}
    assert {alias for alias in imported if alias.startswith(PACKAGE)} <= {f"{PACKAGE}._shared"}


@pytest.mark.parametrize("name", sorted(trees.BUILDERS))
def test_a_tree_in_the_release_form_becomes_a_manifest(name, tmp_path):
    manifest = corpus(name).manifest(trees.BUILDERS[name](tmp_path))
    assert len(manifest) > 1
    assert all(item.label in EMOTIONS and (item.extra.get("corpus_label") or name == "table") for item in manifest)
    for item in manifest:
        if name not in ("meld", "emobox"):
            assert decode(manifest.audio_path(item)).sample_rate_hz == 16000
            assert not Path(item.audio).is_absolute()
    manifest.write(tmp_path / "elsewhere" / "manifest.jsonl")
    assert Manifest.read(tmp_path / "elsewhere" / "manifest.jsonl").ids == manifest.ids


@pytest.mark.parametrize("name", sorted(set(trees.BUILDERS) - {"iemocap", "meld", "emobox", "table"}))
def test_a_folder_without_the_corpus_is_refused_with_the_layout(name, tmp_path):
    with pytest.raises(CorpusError, match=r"(?s)no utterance of .*Expected:"):
        corpus(name).manifest(tmp_path)


@pytest.mark.parametrize("name", sorted(trees.BUILDERS))
def test_a_root_that_does_not_exist_is_refused_with_where_to_get_the_corpus(name, tmp_path):
    with pytest.raises(CorpusError, match="Get .* from "):
        corpus(name).manifest(tmp_path / "absent")


@pytest.mark.parametrize("name", ACTED)
def test_classes_can_be_chosen_and_what_is_left_out_is_logged(name, tmp_path, caplog):
    root = trees.BUILDERS[name](tmp_path)
    with caplog.at_level(logging.INFO):
        kept = corpus(name, classes="angry, sad").manifest(root)
    assert {item.label for item in kept} == {"angry", "sad"}
    assert "left out: " in caplog.text
    assert "1 fear" in caplog.text or "2 fear" in caplog.text


@pytest.mark.parametrize("name", [*ACTED, "meld"])
def test_a_class_that_the_corpus_does_not_have_is_refused(name):
    with pytest.raises(ConfigError, match="frustrated.*neutral"):
        corpus(name, classes="angry,frustrated")


@pytest.mark.parametrize("name", ACTED)
def test_a_recording_with_a_foreign_name_is_refused_by_name(name, tmp_path):
    root = trees.BUILDERS[name](tmp_path)
    trees.write_wav(root / {"crema_d": "AudioWAV", "emodb": "wav", "ravdess": "Actor_01"}[name] / "99x99Zz.wav")
    with pytest.raises(CorpusError, match=r"99x99Zz\.wav"):
        corpus(name).manifest(root)


@pytest.mark.parametrize("name", ACTED)
def test_hidden_files_of_macos_are_passed_over(name, tmp_path):
    root = trees.BUILDERS[name](tmp_path)
    before = corpus(name).manifest(root).ids
    wav = next(root.rglob("*.wav"))
    wav.with_name(f"._{wav.name}").write_bytes(b"Mac OS X")
    assert corpus(name).manifest(root).ids == before


def test_emodb_reads_everything_from_the_name(tmp_path):
    manifest = corpus("emodb").manifest(trees.emodb(tmp_path))
    first, last = manifest[0], manifest[-1]
    assert (first.id, first.speaker, first.label) == ("03a01Fa", "03", "happy")
    assert first.text == "Der Lappen liegt auf dem Eisschrank."
    assert first.extra == {"corpus_label": "F", "sentence": "a01", "gender": "male"}
    assert (last.text, last.extra["gender"]) == ("Die wird auf dem Platz sein, wo wir sie immer hinlegen.", "female")
    assert {item.label for item in manifest} == {"angry", "boredom", "disgust", "fear", "happy", "sad", "neutral"}


def test_emodb_accepts_the_folder_of_recordings_itself(tmp_path):
    trees.emodb(tmp_path)
    manifest = corpus("emodb").manifest(tmp_path / "wav")
    assert manifest.audio_path(manifest[0]) == tmp_path / "wav" / "03a01Fa.wav"


def test_ravdess_keeps_speech_and_song_apart(tmp_path):
    root = trees.ravdess(tmp_path)
    speech, song = corpus("ravdess").manifest(root), corpus("ravdess", vocal_channel="song").manifest(root)
    assert (len(speech), len(song), len(corpus("ravdess", vocal_channel="both").manifest(root))) == (16, 1, 17)
    assert song[0].extra == {
        "corpus_label": "happy", "intensity": "strong", "statement": "02", "repetition": 1, "vocal_channel": "song",
        "gender": "male",
    }  # fmt: skip
    assert (song[0].speaker, song[0].text) == ("01", "Dogs are sitting by the door")
    assert Counter(item.label for item in speech) == dict.fromkeys(
        ["neutral", "calm", "happy", "sad", "angry", "fear", "disgust", "surprise"], 2
    )


def test_ravdess_unpacked_twice_is_refused_with_both_places(tmp_path):
    root = trees.ravdess(tmp_path)
    trees.write_wav(root / "Actor_01" / "03-01-01-01-01-02-01.wav")
    with pytest.raises(CorpusError, match=r"there twice: .*Actor_01.*Audio_Speech_Actors_01-24"):
        corpus("ravdess").manifest(root)


def test_ravdess_refuses_the_sound_of_its_videos(tmp_path):
    trees.write_wav(tmp_path / "Actor_01" / "01-01-01-01-01-02-01.wav")
    with pytest.raises(CorpusError, match="audio-only"):
        corpus("ravdess").manifest(tmp_path)


def test_crema_d_reads_the_recording_with_the_odd_level(tmp_path):
    manifest = corpus("crema_d").manifest(trees.crema_d(tmp_path))
    odd = manifest.utterance("1040_ITH_SAD_X")
    assert odd.text == "I think I have a doctor's appointment."
    assert odd.extra == {"corpus_label": "SAD", "sentence": "ITH", "level": "unspecified", "gender": "male"}
    assert [item.extra["level"] for item in manifest][:4] == ["unspecified", "low", "medium", "high"]


def test_crema_d_has_genders_only_where_the_demographics_are(tmp_path):
    demographics = trees.crema_d(tmp_path) / "VideoDemographics.csv"
    trees.replace_in(demographics, '1002,21,"Female","Caucasian","Not Hispanic"\n', "")
    with pytest.raises(CorpusError, match="no row for actor 1002"):
        corpus("crema_d").manifest(tmp_path)
    demographics.unlink()
    assert all("gender" not in item.extra for item in corpus("crema_d").manifest(tmp_path / "AudioWAV"))


def test_crema_d_cloned_without_git_lfs_says_how_to_get_the_recordings(tmp_path):
    pointer = trees.crema_d(tmp_path) / "AudioWAV" / "1001_DFA_ANG_XX.wav"
    pointer.unlink()
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 72000\n")
    with pytest.raises(CorpusError, match=r"1001_DFA_ANG_XX\.wav' is a Git LFS pointer.*git lfs pull"):
        corpus("crema_d").manifest(tmp_path)


def test_meld_repairs_quotation_marks_and_keeps_dialogues_of_splits_apart(tmp_path):
    manifest = corpus("meld").manifest(trees.meld(tmp_path))
    assert manifest.ids[:4] == ["train_dia0_utt0", "train_dia0_utt1", "train_dia0_utt2", "dev_dia0_utt0"]
    item = manifest.utterance("dev_dia0_utt1")
    assert (item.text, item.label, item.session) == ("Oh my God, he\u2019s lost it\u2026", "surprise", "dev_dia0")
    assert (item.audio, item.speaker, item.extra["split"]) == (None, "Phoebe", "validation")
    assert (item.extra["turn"], item.extra["season"], item.extra["start_time"]) == (1, 4, "00:20:57,256")


def test_meld_reads_a_file_in_windows_encoding(tmp_path):
    path = trees.meld(tmp_path) / "dev_sent_emo.csv"
    path.write_bytes(path.read_bytes().decode().encode("latin-1"))
    assert corpus("meld").manifest(tmp_path).utterance("dev_dia0_utt0").text == "Oh my God, he\u2019s lost it\u2026"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("Emotion", "Feeling", r"dev_sent_emo\.csv' has no column Emotion.*Feeling"),
        ("sadness", "gloom", r"dev_sent_emo\.csv', line 2: the emotion 'gloom' is none of .*sadness"),
        (",4,7,", ",four,7,", r"dev_sent_emo\.csv', line 2: .*whole numbers.*four"),
        (",4,7,", ",4,7,8,", r"dev_sent_emo\.csv', line 2: a row of another length"),
        ('00:21:00,049"', "00:21:00,049", r"dev_sent_emo\.csv', line \d: .*Is a quotation mark missing"),
        (',4,7,"00:20:57,256"', "", r"dev_sent_emo\.csv', line 2: a row of another length"),
    ],
)
def test_meld_names_the_line_that_is_malformed(old, new, message, tmp_path):
    trees.replace_in(trees.meld(tmp_path) / "dev_sent_emo.csv", old, new)
    with pytest.raises(CorpusError, match=message):
        corpus("meld").manifest(tmp_path)


def test_meld_without_one_of_its_files_is_refused(tmp_path):
    (trees.meld(tmp_path) / "test_sent_emo.csv").unlink()
    with pytest.raises(CorpusError, match=r"test_sent_emo\.csv"):
        corpus("meld").manifest(tmp_path)


def test_the_real_emodb_has_its_published_counts(shared_data):
    manifest = corpus("emodb").manifest(shared_data / "emodb")
    assert Counter(item.label for item in manifest) == {"angry": 127, "happy": 71, "neutral": 79, "sad": 62}
    assert len({item.speaker for item in manifest}) == len({item.text for item in manifest}) == 10


def test_the_real_ravdess_has_60_recordings_of_each_actor(shared_data):
    manifest = corpus("ravdess").manifest(shared_data / "ravdess")
    assert Counter(item.speaker for item in manifest) == dict.fromkeys(["01", "02", "03", "04", "05", "06"], 60)
    assert {item.extra["gender"] for item in manifest if item.speaker in ("01", "03", "05")} == {"male"}


def test_the_real_meld_has_its_published_splits_and_no_control_characters(shared_data):
    manifest = corpus("meld").manifest(shared_data / "meld")
    assert Counter(item.extra["split"] for item in manifest) == {"train": 9989, "validation": 1109, "test": 2610}
    assert Counter(item.label for item in manifest if item.extra["split"] == "test")["happy"] == 402
    assert not any("\x80" <= letter < "\xa0" for item in manifest for letter in item.text + item.speaker)
