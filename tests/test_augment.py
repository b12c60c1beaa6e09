"""SpecAugment: how wide masks are, how many, where, and that each row draws its own."""

import pytest
import torch

from heads.augment import POLICIES, Masks, spec_augment


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def masked(masks: Masks, batch: int, frames: int, mels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which mels ``(batch, mels)`` and which frames ``(batch, frames)`` are masked throughout."""
    out = spec_augment(torch.ones(batch, frames, mels), masks) == 0
    return out.all(dim=1), out.all(dim=2)


def blocks(rows: torch.Tensor) -> torch.Tensor:
    """Return how many blocks of True there are in each of ``(batch, size)``."""
    begins = rows & ~torch.nn.functional.pad(rows, (1, 0))[:, :-1]
    return begins.sum(1)


def test_the_policies_are_park_et_als_for_telephone_speech() -> None:
    assert {"conservative": Masks(2, 15, 2, 70, 0.2), "aggressive": Masks(2, 27, 2, 70, 0.2)} == POLICIES


@pytest.mark.parametrize("widest", [1, 7, 15])
def test_widths_are_uniform_from_0_to_the_widest(widest: int) -> None:
    rows = 4000
    mels, _ = masked(Masks(1, widest, 0, 0, 0.0), rows, 2, 40)
    counts = torch.bincount(mels.sum(1), minlength=widest + 1)
    assert len(counts) == widest + 1  # none is wider
    expected = rows / (widest + 1)
    assert (counts - expected).abs().max() < 5 * expected**0.5


def test_places_are_uniform_and_reach_both_ends() -> None:
    _, frames = masked(Masks(0, 0, 1, 1, 1.0), 12000, 10, 3)
    places = frames[frames.sum(1) == 1].float().argmax(1)
    counts = torch.bincount(places, minlength=10)
    assert (counts - len(places) / 10).abs().max() < 5 * (len(places) / 10) ** 0.5


@pytest.mark.parametrize(("frames", "widest"), [(100, 20), (150, 30), (349, 69), (1000, 70), (4, 0)])
def test_a_time_mask_is_at_most_a_share_of_the_frames_and_at_most_its_width(frames: int, widest: int) -> None:
    masks = POLICIES["aggressive"]
    _, found = masked(Masks(0, 0, 1, masks.time_width, masks.time_share), 3000, frames, 2)
    assert int(found.sum(1).max()) == widest


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_there_are_as_many_masks_as_asked_for(count: int) -> None:
    mels, frames = masked(Masks(count, 3, count, 3, 1.0), 500, 100, 100)
    for found in (mels, frames):
        assert int(blocks(found).max()) == count
        assert int(found.sum(1).max()) <= 3 * count
    if count:  # a mask of width 0 is none
        assert int(blocks(mels).min()) == 0


def test_what_is_not_in_a_mask_is_as_it_was_and_what_is_has_the_value() -> None:
    frames = torch.randn(5, 60, 40)
    before = frames.clone()
    out = spec_augment(frames, Masks(2, 9, 2, 9, 1.0), value=-7.0)
    changed = out != frames
    assert torch.equal(frames, before)
    assert changed.any()
    assert (out[changed] == -7.0).all()
    # Masks are whole rows and columns.
    rows, columns = changed.all(dim=2), changed.all(dim=1)
    assert torch.equal(changed, rows[:, :, None] | columns[:, None, :])


def test_every_row_draws_its_own_and_a_seed_gives_the_same_again() -> None:
    frames = torch.randn(1, 200, 80).expand(40, -1, -1)
    torch.manual_seed(0)
    first = spec_augment(frames, POLICIES["conservative"])
    assert len({one.numpy().tobytes() for one in first}) == 40
    second = spec_augment(frames, POLICIES["conservative"])
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(spec_augment(frames, POLICIES["conservative"]), first)


def test_aggressive_masks_hide_more_mels_than_conservative_ones() -> None:
    shares = {name: masked(masks, 3000, 10, 128)[0].float().mean().item() for name, masks in POLICIES.items()}
    # Two masks of a mean width of 7.5 and 13.5 of 128; now and then they overlap, and at the ends they do not.
    assert shares["conservative"] == pytest.approx(2 * 7.5 / 128, rel=0.05)
    assert shares["aggressive"] == pytest.approx(2 * 13.5 / 128, rel=0.07)


def test_few_mels_and_few_frames_are_masked_without_an_error() -> None:
    out = spec_augment(torch.ones(50, 1, 3), POLICIES["aggressive"])
    assert out.shape == (50, 1, 3)
    assert int((out == 0).sum(2).max()) == 3
    assert spec_augment(torch.ones(0, 5, 4), POLICIES["aggressive"]).shape == (0, 5, 4)
