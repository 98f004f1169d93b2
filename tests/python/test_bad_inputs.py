# SPDX-License-Identifier: Apache-2.0
"""Every bad call of bad_calls.py raises its exception with its sentence, and writes nothing."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from bad_calls import BAD, BINDING, HELD, HELD_DK, HELD_KEEP, HELD_LSE, ROW, Bad, K, Q, V

import attentile

_INPUTS = [x.copy() for x in (Q, K, V)]


def test_the_table() -> None:
    assert len(BAD) >= 80 and len({name for name, *_ in BAD}) == len(BAD)
    assert all(words for *_, words in BAD)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("bad", BAD, ids=[name for name, *_ in BAD])
def test_bad_call(bad: Bad) -> None:
    _, call, kind, words = bad
    with pytest.raises(kind) as caught:
        call()
    assert words in str(caught.value)
    if bad in BINDING:
        for held in (*HELD, HELD_DK, HELD_LSE, HELD_KEEP, ROW):
            assert (held == 7).all(), "something was written"
    for x, before in zip((Q, K, V), _INPUTS, strict=True):
        np.testing.assert_array_equal(x, before)


def test_good_calls_after_bad_ones() -> None:
    out = attentile.attention(Q, K, V)
    for _, call, *_ in BAD[::5]:
        with contextlib.suppress(Exception):
            call()
    np.testing.assert_array_equal(attentile.attention(Q, K, V), out)


def test_unsupported_is_both_kinds() -> None:
    """`except ValueError` and `except NotImplementedError` both catch it."""
    assert issubclass(attentile.UnsupportedError, ValueError)
    assert issubclass(attentile.UnsupportedError, NotImplementedError)
