"""Inventories: which phones there are, and the id of each.

``arpabet128`` is the inventory of Makiuchi et al. 2021 with the ids of their published list (``phone_dict.csv``):
silence 0, unknown word 1, four sounds that are no words, and the 122 pairs of an ARPAbet phone without stress and a
position that occurred in their alignments: ``_B`` begins a word, ``_I`` is inside, ``_E`` ends it, ``_S`` is a word
by itself. Here a pair that is not among them counts as inside (all 39 are there), a phone that belongs to no word too,
and a sound in brackets that is not one of the four counts as ``GARBAGE``.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from featcache.aligner import SymbolSet
from featcache.alignment import UNKNOWN, Alignment, word_of_each_phone
from featcache.errors import StreamError
from featcache.symbols import base_phone

SILENCE_ID, UNKNOWN_ID = 0, 1
_EVENTS = ("LAUGHTER", "BREATHING", "GARBAGE", "LIPSMACK")
_PAIRS = (
    "k_B l_I ih_I r_I iy_E sh_B s_B eh_I z_E w_B uh_I d_E n_B v_I er_E r_B z_I ao_I t_E t_B ih_E ah_I ch_E d_B ay_I "
    "s_I ih_B ey_I f_B n_I dh_B ah_E m_E eh_B iy_I th_I ng_E n_E m_I f_I r_E b_B m_B t_I ng_I l_E hh_B d_I b_I er_I "
    "ow_E ah_S sh_I p_E ae_I ah_B y_B uw_E v_E g_B s_E ow_I oov_S hh_I k_E aw_I k_I jh_B aa_I ae_B ao_B p_B ay_E th_B "
    "uw_I ch_I p_I v_B ey_E er_S jh_I ay_S w_I ow_B l_B aw_B y_I g_E zh_I aa_B th_E sh_E f_E g_I ch_B jh_E ey_S ay_B "
    "iy_B er_B dh_I b_E oy_I aw_E ey_B z_B ao_E oy_E dh_E aa_E iy_S zh_E ow_S oy_B zh_B ae_E aa_S uw_S ao_S eh_S "
    "m_S uw_B"
)


@dataclass(frozen=True)
class Inventory:
    """A list of phones; an id is a position in it.

    Attributes:
        name: what to call it.
        symbols: every phone; the first is silence, the second an unknown word.
        positions: whether phones are told apart by their position in the word.
    """

    name: str
    symbols: tuple[str, ...]
    positions: bool

    def __len__(self) -> int:
        return len(self.symbols)

    def ids(self, alignment: Alignment, symbol_set: SymbolSet) -> np.ndarray:
        """Return the id of each phone of an alignment, ``(phones,)`` int16.

        Raises:
            StreamError: a phone maps to nothing; the message lists the inventory.
        """
        known = {symbol: number for number, symbol in enumerate(self.symbols)}
        ids = [
            self._id(label, place, symbol_set, known)
            for (*_, label), place in zip(alignment.phones, _positions(alignment), strict=True)
        ]
        return np.array(ids, np.int16)

    def _id(self, label: str, position: str, symbol_set: SymbolSet, known: dict[str, int]) -> int:
        if self.positions and label in known:  # with its position already, as Gentle writes it
            return known[label]
        phone = base_phone(label, symbol_set)
        if phone == UNKNOWN:
            return UNKNOWN_ID
        if phone.startswith("[") and phone not in known:
            phone = phone.strip("[]") if phone.strip("[]") in known else "GARBAGE"
        for symbol in (phone + position, phone + "_I") if self.positions else ():
            if symbol in known:
                return known[symbol]
        if phone not in known:
            raise StreamError(
                f"its phone {label!r} is not in the inventory {self.name}: {' '.join(self.symbols)}. For another "
                "language, or other symbols, set phones.inventory=occurring."
            )
        return known[phone]


def arpabet128() -> Inventory:
    """Return the inventory of Makiuchi et al. 2021."""
    return Inventory("arpabet128", ("SIL", "UNK", *_EVENTS, *_PAIRS.split()), positions=True)


def occurring(alignments: Iterable[tuple[Alignment, SymbolSet]]) -> Inventory:
    """Return an inventory of the phones that occur: silence, unknown word, then all others sorted, without position.

    Args:
        alignments: each with the symbols it is written in; English ones are reduced to ARPAbet without stress.
    """
    found = {
        base_phone(label, symbol_set) for alignment, symbol_set in alignments for *_, label in alignment.phones
    } - {UNKNOWN}
    return Inventory("occurring", ("SIL", "UNK", *sorted(found)), positions=False)


def _positions(alignment: Alignment) -> list[str]:
    owners = word_of_each_phone(alignment)
    positions = []
    for number, owner in enumerate(owners):
        first = number == 0 or owners[number - 1] != owner
        last = number == len(owners) - 1 or owners[number + 1] != owner
        positions.append("_I" if owner < 0 else {(1, 1): "_S", (1, 0): "_B", (0, 1): "_E", (0, 0): "_I"}[first, last])
    return positions
