"""Perceptual hashes: what counts as nearly the same image.

What is locked: 1) copies of photographs are near, other content is far, in the hash and in the mean colours; 2) the
bits of a hash, by hand; 3) near pairs are those that comparing all pairs finds, flat images aside, in any blocks.
"""

from __future__ import annotations

import functools
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from privileged.audit import dhash, near_pairs
from privileged.audit.rows import cells
from tests.audit_case import jpeg
from tests.photographs import NAMES, photograph


@pytest.mark.parametrize("name", NAMES)
def test_copies_of_photographs_have_the_same_hash(name):
    """Recompressed, shrunk, a little brighter; the other photograph and the mirrored one are far away."""
    image = photograph(name).images[0]
    (other,) = (photograph(one).images[0] for one in NAMES if one != name)

    def far(a, b):
        return (int(dhash(a), 16) ^ int(dhash(b), 16)).bit_count()

    def levels(a, b):
        return max(abs(int(x, 16) - int(y, 16)) for x, y in zip(cells(a), cells(b), strict=True))

    half = image.resize((image.width // 2, image.height // 2))
    for copy in (jpeg(image, 75), jpeg(image, 20), half, jpeg(half, 60), ImageEnhance.Brightness(image).enhance(1.05)):
        assert far(image, copy) <= 4 and levels(image, copy) <= 2
    for unlike in (other, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)):
        assert far(image, unlike) > 15 and levels(image, unlike) > 5
    assert dhash(Image.new("RGB", (50, 50), "red")) == "0" * 16


def test_the_bits_of_a_hash():
    """Brighter to the right is 1: the first row of cells is the first byte."""
    ramp = Image.fromarray(np.tile(np.arange(9, dtype=np.uint8) * 20, (8, 1)))
    assert dhash(ramp) == "ff" * 8
    ramp.paste(ramp.crop((0, 0, 9, 1)).transpose(Image.Transpose.FLIP_LEFT_RIGHT), (0, 0))
    assert dhash(ramp) == "00" + "ff" * 7


HASHES = st.lists(st.integers(0, 2**64 - 1) | st.sampled_from([0, 1, 0xFF, 0xFFF, 0xFFE, 2**64 - 1]), max_size=12)


@given(mine=HASHES, theirs=HASHES, flips=st.lists(st.integers(0, 63), max_size=6))
def test_near_pairs_are_those_of_comparing_all(mine, theirs, flips):
    theirs = theirs + [functools.reduce(lambda h, bit: h ^ (1 << bit), flips, h) for h in mine]
    expected = {
        (i, j)
        for i, a in enumerate(mine)
        for j, b in enumerate(theirs)
        if (a ^ b).bit_count() <= 4 and a.bit_count() > 4 and b.bit_count() > 4
    }
    found = list(near_pairs([f"{h:016x}" for h in mine], [f"{h:016x}" for h in theirs]))
    assert set(found) == expected and len(found) == len(expected)


def test_near_pairs_across_blocks(monkeypatch):
    monkeypatch.setattr("privileged.audit.overlap.BLOCK", 3)
    hashes = [f"{random.Random(i).getrandbits(64):016x}" for i in range(10)]
    assert set(near_pairs(hashes, hashes[::-1])) == {(i, 9 - i) for i in range(10)}
