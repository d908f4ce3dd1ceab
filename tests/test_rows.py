"""The shuffler and the batcher that all sources of rows share, tested on row numbers."""

from __future__ import annotations

from itertools import chain, islice

import pytest
import torch

from saekit.rows import cut, pieces


def numbers(spans) -> dict[str, torch.Tensor]:
    return {"x": torch.cat([torch.arange(*span) for span in spans])}


def taken(count, *arguments) -> list[list[int]]:
    return [columns["x"].tolist() for columns in islice(pieces(*arguments), count)]


def rows_of(*arguments) -> list[int]:
    return [*chain(*taken(*arguments))]


def test_without_a_seed_the_pass_is_in_order_and_ends():
    assert taken(9, 7, numbers, 3, None, 2) == [[2, 3, 4], [5, 6]]


@pytest.mark.parametrize("block,window", [(None, 1), (4, 2), (1, 3), (5, 100)])
def test_every_epoch_has_every_row_once_and_a_cursor_goes_on(block, window):
    n, size = 23, 5
    rows = rows_of(3 * n, n, numbers, size, 7, 0, block, window)
    epochs = [rows[i * n : (i + 1) * n] for i in range(5)]
    assert (
        all(sorted(epoch) == list(range(n)) for epoch in epochs)
        and len({tuple(epoch) for epoch in epochs}) == 5
    )
    for start in (1, 8, n, 2 * n + 3):
        assert (
            rows_of(8, n, numbers, size, 7, start, block, window) == rows[start : start + 8 * size]
        )


def test_a_window_holds_whole_blocks_and_no_more_rows_than_it_may():
    spans_seen = []

    def load(spans):
        spans_seen.append(spans)
        return numbers(spans)

    taken(3, 23, load, 6, 0, 0, 4, 2)
    assert [len(spans) for spans in spans_seen] == [2, 2, 2]  # six blocks, the last of 3 rows
    assert sorted(chain(*spans_seen)) == [(0, 4), (4, 8), (8, 12), (12, 16), (16, 20), (20, 23)]


def test_pieces_cross_windows_and_only_the_last_of_a_stream_is_smaller():
    orders = (((0, 4), [3, 0, 2]), ((10, 12), [1, 0]), ((20, 21), [0]))
    windows = [(numbers([span]), torch.tensor(order)) for span, order in orders]
    assert [c["x"].tolist() for c in cut(windows, 4)] == [[3, 0, 2, 11], [10, 20]]
    assert [c["x"].tolist() for c in cut(windows, 2, start=4)] == [[10, 20]]
    assert list(cut(windows, 2, start=6)) == []


def test_rows_are_copied_before_the_next_window_is_asked_for():
    buffer = torch.zeros(3)

    def windows():
        for value in (1.0, 2.0, 3.0):
            buffer.fill_(value)  # a shuffle buffer is filled again in place
            yield {"x": buffer}, torch.arange(2)

    assert [c["x"].tolist() for c in cut(windows(), 3)] == [[1.0, 1.0, 2.0], [2.0, 3.0, 3.0]]
