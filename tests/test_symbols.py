import pytest

from featcache import espeak
from featcache.alignment import UNKNOWN
from featcache.errors import StreamError
from featcache.symbols import CLASSES, ENGLISH, ESPEAK, IPA, PHONES, SILENCE, VARIANTS, base_phone, phone_class

# READMEs of MFA's English dictionaries 2.0.0a, 2.2.1 and 3.1.0: English, US, UK, Nigeria, India, non-native.
MFA = """a aj aw aː b bʲ c cʰ cʷ d dʒ dʲ d̪ e ej eː f fʲ fʷ h i iː j k kp kʰ kʷ l m mʲ m̩ n n̩ o oː ow p pʰ pʲ pʷ s t tʃ
tʰ tʲ tʷ t̪ u uː v vʲ vʷ w z æ ç ð ŋ ɐ ɑ ɑː ɒ ɒː ɔ ɔj ɖ ə əw ɚ ɛ ɛː ɜ ɜː ɝ ɟ ɟʷ ɡ ɡb ɡʷ ɪ ɫ ɫ̩ ɱ ɲ ɹ ɾ ɾʲ ɾ̃ ʃ ʈ ʈʲ ʈʷ
ʉ ʉː ʊ ʋ ʎ ʒ ʔ θ"""
TIMIT = """b d g p t k dx q jh ch s sh z zh f th v dh m n ng em en eng nx l r w y hh hv el iy ih eh ey ae aa aw ay ah ao
oy ow uh uw ux er ax ix axr ax-h bcl dcl gcl pcl tcl kcl"""
BUCKEYE = """aa aan ae aen ah ahn ao aon aw awn ay ayn ehn el em en eng er ern eyn hh ihn iyn nx own oyn tq uhn uwn"""
# What espeak-ng 1.52 says, in its nine English voices, of the CMU dictionary, the demo corpus and MFA's sentences.
MNEMONICS = """0 3 3: ; ? @ @- @2 @5 @L A: A@ A~ D E I I# I2 IR N O O2 O: O@ OI O~ S T U U@ V VR Z a a# aI aI2 aI3 aI@
aU aa b d dZ e@ eI f g h i i: i:: i@ i@3 j k l l# m n n- o o@ oU p r r- s t t# t2 tS t[ u: v w w# x z"""


def test_there_are_39_phones_and_each_is_itself():
    assert len(PHONES) == len(set(PHONES)) == 39
    for phone in PHONES:
        for spelling in (phone, phone.upper(), f"{phone.upper()}1", f"{phone}_B", f"{phone}0_S", f"{phone}_i"):
            assert base_phone(spelling, "english") == phone


@pytest.mark.parametrize(
    ("symbols", "symbol_set"), [(MFA, "english"), (TIMIT, "english"), (BUCKEYE, "english"), (MNEMONICS, "espeak")]
)
def test_known_symbol_sets_are_mapped_whole(symbols, symbol_set):
    assert {base_phone(symbol, symbol_set) for symbol in symbols.split()} <= set(PHONES)


def test_arpabet_and_ipa_do_not_conflict():
    tables = [{phone: phone for phone in PHONES}, VARIANTS, IPA]
    for symbol, phone in ENGLISH.items():
        assert {table[symbol] for table in tables if symbol in table} == {phone}
        assert phone in PHONES
        assert base_phone(symbol, "english") == phone
    assert set(ESPEAK.values()) == set(PHONES)


@pytest.mark.parametrize(
    ("symbol", "phone"),
    [("tʰ", "t"), ("kʷ", "k"), ("vʲ", "v"), ("ɫ̩", "l"), ("n̩", "n"), ("ɑː", "aa"), ("aː", "aa"), ("a", "ae"),
     ("ɛː", "eh"), ("ɾ̃", "n"), ("ɾʲ", "t"), ("d̪", "dh"), ("t̪", "th"), ("ç", "hh"), ("t͡ʃ", "ch"), ("ˈiː", "iy"),
     ("ɔ̃", "ao"), ("õ", "ow"), ("c\u0327", "hh"), ("ə˞", "er"), ("ʌ", "ah"), ("AH0", "ah"), ("ax-h", "ah"),
     ("AXR", "er"), ("kcl", "k")],
)  # fmt: skip
def test_marks_are_taken_off_unless_they_decide(symbol, phone):
    assert base_phone(symbol, "english") == phone


def test_espeak_is_read_without_stress_and_with_its_case():
    assert [base_phone(symbol, "espeak") for symbol in ("'aI", ",I2", "=i", "%@", "D", "d", "''3:")] == [
        "ay", "ih", "iy", "ah", "dh", "d", "er"
    ]  # fmt: skip


@pytest.mark.parametrize("symbol", ["spn", "SPN", "+SPN+", "oov", "oov_S", "<unk>", "spn_S"])
@pytest.mark.parametrize("symbol_set", ["english", "espeak"])
def test_unknown_words_are_one_phone(symbol, symbol_set):
    assert base_phone(symbol, symbol_set) == UNKNOWN


@pytest.mark.parametrize(
    ("symbol", "event"),
    [("[laughter]", "[LAUGHTER]"), ("[ Lip Smack ]", "[LIP SMACK]"), ("+NSN+", "[NOISE]"),
     ("+BREATHING+", "[BREATHING]"), ("++GARBAGE++", "[GARBAGE]"),
     ("laughter_S", "[LAUGHTER]"), ("noise_S", "[NOISE]")],
)  # fmt: skip
def test_events_are_in_brackets_and_upper_case(symbol, event):
    assert base_phone(symbol, "english") == event
    assert phone_class(event) == "event"


@pytest.mark.parametrize(
    ("symbol", "symbol_set"),
    [("Y:", "espeak"), ("_:", "espeak"), ("aʊ", "espeak"), ("ø", "english"), ("", "english"), ("sil", "english")],
)
def test_a_symbol_that_maps_to_nothing_is_an_error_that_lists_the_inventory(symbol, symbol_set):
    with pytest.raises(StreamError, match=r"aa ae ah .* zh, spn or an event.*symbols=other") as caught:
        base_phone(symbol, symbol_set)
    assert repr(symbol) in str(caught.value)


def test_other_symbols_are_taken_as_they_are():
    assert base_phone(" Y:_B1", "other") == " Y:_B1"


def test_other_symbols_have_no_class_but_unknown_words_and_events_have():
    labels = ["s", "y", "S", "ø", UNKNOWN, "[COUGH]", SILENCE]
    assert [phone_class(base_phone(label, "other"), "other") for label in labels] == [
        "other", "other", "other", "other", "unknown", "event", "silence"
    ]  # fmt: skip
    assert phone_class("s", "espeak") == "fricative"


def test_every_phone_has_a_class():
    assert {phone_class(phone) for phone in PHONES} == set(CLASSES.values())
    assert [phone_class(label) for label in (SILENCE, UNKNOWN, "[COUGH]", "y:")] == [
        "silence", "unknown", "event", "other"
    ]  # fmt: skip


@pytest.mark.parametrize("voice", ["gmw/en-US", "gmw/en-GB-scotland", "gmw/en-029"])
def test_what_espeak_says_now_is_known(voice):
    pytest.importorskip("espeakng_loader")
    text = "Three cute city girls heard their poor uncle's azure bird chirp, while we measured youth and joy loudly."
    spoken = espeak.speak(text, voice).phones
    phones = [base_phone(phone.label, "espeak") for phone in spoken if not phone.label.startswith(espeak.PAUSE)]
    assert len(set(phones)) > 25
