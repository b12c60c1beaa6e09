"""A speaker's mean depends on that speaker alone, and on nothing's order."""

from collections.abc import Sequence

import numpy as np
import pytest

from featcache import Utterance
from featcache.errors import ConfigError, ManifestError, StreamError
from featcache.speakers import speaker_means


class Embeddings:
    """Stands where a cached stream does: the embedding of utterance ``s-12`` is 12 in its first place."""

    layers = 1

    def stats(self, ids: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        mean = np.zeros((len(ids), self.layers, 4), np.float32)
        mean[:, :, 0] = [[float(name.split("-")[1])] for name in ids]
        mean[:, :, 1] = 1.0
        return mean, np.zeros_like(mean)


def utterances(speaker: str | None, count: int) -> list[Utterance]:
    return [Utterance(id=f"{speaker}-{number}", speaker=speaker) for number in range(count)]


def test_few_utterances_give_their_plain_average() -> None:
    means = speaker_means(Embeddings(), [*utterances("b", 5), *utterances("a", 2)])
    assert list(means) == ["a", "b"]
    assert means["a"].dtype == np.float32
    np.testing.assert_array_equal(means["a"], [0.5, 1, 0, 0])
    np.testing.assert_array_equal(means["b"], [2, 1, 0, 0])


def test_the_draw_does_not_depend_on_order_or_on_other_speakers() -> None:
    rows = utterances("a", 50)
    alone = speaker_means(Embeddings(), rows, limit=10)["a"]
    shuffled = [*utterances("b", 30), *rows[::-1]]
    np.testing.assert_array_equal(speaker_means(Embeddings(), shuffled, limit=10)["a"], alone)


def test_seeds_and_speakers_draw_differently_and_repeatably() -> None:
    rows = [*utterances("a", 50), *utterances("b", 50)]
    means = speaker_means(Embeddings(), rows, limit=10)
    assert means["a"][0] != means["b"][0]
    assert speaker_means(Embeddings(), rows, limit=10, seed=1)["a"][0] != means["a"][0]
    np.testing.assert_array_equal(speaker_means(Embeddings(), rows, limit=10)["b"], means["b"])


def test_a_draw_takes_no_utterance_twice() -> None:
    [mean] = speaker_means(Embeddings(), utterances("a", 11), limit=10).values()
    total = sum(range(11))
    assert 10 * mean[0] in [pytest.approx(total - left_out) for left_out in range(11)]


def test_normalised_means_have_unit_length() -> None:
    plain = speaker_means(Embeddings(), utterances("a", 5))["a"]
    unit = speaker_means(Embeddings(), utterances("a", 5), normalise=True)["a"]
    assert np.linalg.norm(unit) == pytest.approx(1)
    np.testing.assert_allclose(unit, plain / np.linalg.norm(plain), rtol=1e-6)


def test_utterances_without_a_speaker_are_named() -> None:
    with pytest.raises(ManifestError, match=r"2 utterances have no speaker: 'None-0', 'None-1'\. Fill"):
        speaker_means(Embeddings(), [*utterances("a", 1), *utterances(None, 2)])


def test_a_stream_of_several_layers_is_refused() -> None:
    class Deep(Embeddings):
        layers = 3

    with pytest.raises(StreamError, match="has 3 layers"):
        speaker_means(Deep(), utterances("a", 1))


def test_a_limit_below_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        speaker_means(Embeddings(), utterances("a", 1), limit=0)
