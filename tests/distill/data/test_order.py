import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from distill.data.order import BatchOrder, BlockShuffled, Shuffled, Source, permute, shares


def source(rows: int, held: int = 0, **options) -> Source:
    return Source(rows, held, seed=5, **options)


def rows_of(order: BatchOrder, number: int = 0) -> list[list[int]]:
    return [step.rows[number].tolist() for step in order]


@given(rows=st.integers(1, 5000), key=st.integers(0, 2**63))
@settings(deadline=None, max_examples=50)
def test_a_permutation_has_every_row_once_and_its_key_decides_it(rows, key):
    everyone = np.arange(rows)
    order = permute(everyone, rows, key)
    assert sorted(order.tolist()) == everyone.tolist()
    np.testing.assert_array_equal(order, permute(everyone, rows, key))
    np.testing.assert_array_equal(permute(everyone[::-1], rows, key), order[::-1])


@pytest.mark.parametrize("rows", [3, 10, 50])
def test_every_row_comes_at_every_position_equally_often(rows):
    keys = 1500
    table = np.zeros((rows, rows))
    for key in range(keys):
        table[np.arange(rows), permute(np.arange(rows), rows, key)] += 1
    assert chisquare(table.ravel(), ddof=2 * rows - 2).pvalue > 1e-4


@given(data=st.data(), rows=st.integers(1, 300), seed=st.integers(0, 9))
@settings(deadline=None)
def test_every_row_is_trained_on_or_held_out(data, rows, seed):
    one = Source(rows, data.draw(st.integers(0, rows // 2)), seed)
    trained = one.training(np.arange(len(one)))
    assert sorted([*trained.tolist(), *one.held_out.tolist()]) == list(range(rows))
    assert (np.diff(trained) > 0).all()


def test_held_out_rows_are_spread_and_the_seed_decides_them():
    first, second = Source(10_000, 100, seed=1).held_out, Source(10_000, 100, seed=2).held_out
    assert len(np.intersect1d(first, second)) < 10
    np.testing.assert_array_equal(first, Source(10_000, 100, seed=1).held_out)
    assert abs(first.mean() - 5000) < 100


def test_a_permutation_of_a_billion_rows_is_a_formula():
    order = permute(np.array([0, 1, 999_999_999]), 1_000_000_000, 1)
    assert len(set(order.tolist())) == 3
    assert order.max() < 1_000_000_000


def test_order_is_a_pure_function_and_each_epoch_has_its_own():
    def order(seed: int, epoch: int) -> list[list[int]]:
        one = BatchOrder([source(120, 20)], 8, seed)
        one.set_epoch(epoch)
        return rows_of(one)

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)
    assert [len(batch) for batch in order(1, 0)] == [8] * 12
    assert len(set(sum(order(1, 0), []))) == 96


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("block", [0, 7])
def test_ranks_together_see_the_same_global_batches(ranks, block):
    sources = [source(90, 9, block=block, window=3), source(40, 4, block=block, weight=50.0)]
    alone = BatchOrder(sources, 8, 3)
    orders = [BatchOrder(sources, 8, 3, rank, ranks) for rank in range(ranks)]
    for order in (alone, *orders):
        order.set_epoch(2)
    for number in range(2):
        together = [sorted(sum(parts, [])) for parts in zip(*(rows_of(order, number) for order in orders), strict=True)]
        assert together == rows_of(alone, number)
    assert {len(order) for order in orders} == {117 // 8}
    assert {sum(map(len, step.rows)) for order in orders for step in order} == {8 // ranks}, "equal work for every rank"


@pytest.mark.parametrize("block", [0, 1, 16, 1000])
def test_a_pass_has_every_row_but_the_held_out_ones_once(block):
    one = source(300, 30, block=block, window=4)
    kind = BlockShuffled if block else Shuffled
    rows = np.concatenate([kind(one, 7).take(start, min(start + 11, 270)) for start in range(0, 270, 11)])
    assert sorted([*rows.tolist(), *one.held_out.tolist()]) == list(range(300))
    assert rows.tolist() != sorted(rows.tolist())


def test_a_block_shuffle_reads_whole_blocks_window_after_window():
    one = BlockShuffled(source(1000, 50, block=25, window=4), 3)
    rows = one.take(0, 950)
    blocks = [set((rows[start:stop] // 25).tolist()) for start, stop in zip(one.edges[:-1], one.edges[1:], strict=True)]
    assert [len(window) for window in blocks] == [4] * 10
    assert len(set.union(*blocks)) == 40, "no block comes in two windows"
    assert blocks[0] == {first // 25 for first, count in one.blocks(0)}
    first = rows[: one.edges[1]] // 25
    assert (np.diff(first) != 0).mean() > 0.5, "rows of a window are mixed"


def test_blocks_of_the_next_window_are_named_for_reading_ahead():
    order = BatchOrder([source(1000, block=50, window=2)], 10, 0)
    steps = list(order)
    asked = [run for step in steps for run in step.ahead[0]]
    assert sorted(asked) == [(first, 50) for first in range(0, 1000, 50)], "each block once"
    ready: set[int] = set()
    for step in steps:
        ready |= {row for first, count in step.ahead[0] for row in range(first, first + count)}
        assert set(step.rows[0].tolist()) <= ready, "asked for before it is needed"
    assert len({step.windows for step in steps}) == 10


def test_corpora_are_mixed_by_weight_in_every_batch():
    counts = shares([Source(1000, weight=3), Source(50, weight=1), Source(10, weight=0.01)], 64, 200, seed=0, epoch=1)
    assert (counts.sum(1) == 64).all()
    assert (counts >= 0).all()
    exact = 64 * np.array([3, 1, 0.01]) / 4.01
    assert (np.abs(counts - exact) < 1 + 1e-9).all()
    np.testing.assert_allclose(counts.sum(0), 200 * exact, atol=2)


def test_a_small_corpus_of_great_weight_comes_again_and_a_large_one_of_small_weight_is_sampled():
    order = BatchOrder([source(100, weight=1.0), source(1000, weight=1.0)], 10, 0)
    small, large = sum(rows_of(order, 0), []), sum(rows_of(order, 1), [])
    assert len(order) == 110
    assert {small.count(row) for row in range(100)} <= {5, 6}
    assert {large.count(row) for row in range(1000)} == {0, 1}


def test_without_weights_every_row_comes_about_once():
    order = BatchOrder([source(640), source(64)], 16, 0)
    assert len(set(sum(rows_of(order, 0), []))) >= 638
    assert len(set(sum(rows_of(order, 1), []))) >= 62


def test_validation_covers_every_held_out_row_once():
    sources = [source(103, 20), source(50, 7)]
    order = BatchOrder(sources, 8, seed=0, shuffle=False)
    for number, one in enumerate(sources):
        seen = sum(rows_of(order, number), [])
        assert sorted(seen) == one.held_out.tolist()
        assert len(seen) == (20, 7)[number]
    assert len(list(order)) == len(order) == 4
    ranks = [BatchOrder(sources, 8, 0, rank, 2, shuffle=False) for rank in range(2)]
    assert sorted(sum((sum(rows_of(order, 0), []) for order in ranks), [])) == sources[0].held_out.tolist()


@pytest.mark.parametrize("block", [0, 8])
def test_an_epoch_shows_one_view_of_every_item_and_each_view_has_its_turn(block):
    views, items = 3, 60
    source = Source(items, 6, seed=1, block=block, window=2, views=views, turning=True)
    order = BatchOrder([source], 9, seed=0)
    shown = []
    for epoch in range(views):
        order.set_epoch(epoch)
        rows = np.concatenate(rows_of(order))
        shown.append(rows)
        assert len(set((rows // views).tolist())) == len(rows) == 54
        assert len(set((rows % views).tolist())) == views
        assert not set((rows // views).tolist()) & set(source.held_out.tolist())
    assert len(set(np.concatenate(shown).tolist())) == 54 * views, "after as many epochs as views every one was shown"
    held = np.concatenate(rows_of(BatchOrder([source], 9, seed=0, shuffle=False)))
    assert (held % views == source.view(source.held_out) % views).all()


def test_without_turning_only_the_first_view_is_read():
    order = BatchOrder([Source(40, 4, views=5)], 6, seed=0)
    assert all(row % 5 == 0 for batch in rows_of(order) for row in batch)


def test_blocks_of_items_are_read_ahead_as_blocks_of_rows():
    source = Source(64, 4, block=8, window=2, views=3, turning=True)
    seen: set[int] = set()
    for step in BatchOrder([source], 6, seed=0):
        seen |= {row for first, count in step.ahead[0] for row in range(first, first + count)}
        assert set(step.rows[0].tolist()) <= seen


@pytest.mark.parametrize("block", [0, 50])
def test_rows_of_like_length_share_a_batch_and_nothing_is_lost(block):
    lengths = np.random.default_rng(0).integers(1, 100, 2000)
    source = Source(2000, 100, block=block, window=4)
    plain = BatchOrder([source], 16, seed=3)
    bucketed = BatchOrder([source], 16, seed=3, lengths=[lambda rows: lengths[rows]])
    assert sorted(sum(rows_of(bucketed), [])) == sorted(sum(rows_of(plain), []))
    spread = [np.mean([np.ptp(lengths[batch]) for batch in rows_of(order)]) for order in (bucketed, plain)]
    assert spread[0] < 0.1 * spread[1]
    middle = [lengths[batch].mean() for batch in rows_of(bucketed)]
    assert abs(np.corrcoef(middle, np.arange(len(middle)))[0, 1]) < 0.3, "short batches do not come first"


def test_ranks_share_the_same_bucketed_batches():
    lengths = np.random.default_rng(0).integers(1, 100, 300)
    whole, *parts = (
        rows_of(BatchOrder([source(300, 20)], 12, 7, rank, ranks, lengths=[lambda rows: lengths[rows]]))
        for rank, ranks in ((0, 1), (0, 2), (1, 2))
    )
    assert [sorted(a + b) for a, b in zip(*parts, strict=True)] == whole


@pytest.mark.parametrize("bucketed", [False, True])
def test_every_row_of_a_block_shuffle_was_read_ahead(bucketed):
    lengths = [lambda rows: rows % 7] if bucketed else []
    one = Source(3000, 30, block=20, window=3)
    seen: set[int] = set()
    for step in BatchOrder([one], 30, seed=0, lengths=lengths):
        seen |= {row for first, count in step.ahead[0] for row in range(first, first + count)}
        missing = set(step.rows[0].tolist()) - seen
        assert not missing


@pytest.mark.parametrize("block", [0, 50])
def test_each_group_reads_its_own_part_and_batches_are_whole(block):
    sources = [source(1003, 40, block=block, window=3), source(300, 8, block=block)]
    orders = [BatchOrder(sources, 24, 3, rank, 6, groups=3) for rank in range(6)]
    steps = [list(order) for order in orders]
    assert {len(each) for each in steps} == {len(orders[0])} == {1255 // 24}
    for number, one in enumerate(sources):
        ranks = [np.concatenate([step.rows[number] for step in each]) for each in steps]
        groups = [np.concatenate(ranks[first : first + 2]) for first in (0, 2, 4)]
        assert all(max(early) < min(late) for early, late in itertools.pairwise(groups)), "parts follow one another"
        assert max(np.concatenate(ranks)) < one.rows
        assert not set(np.concatenate(ranks).tolist()) & set(one.held_out.tolist())
    seen = np.concatenate([step.rows[0] for each in steps for step in each])
    assert len(set(seen.tolist())) > 0.95 * len(sources[0]), "an epoch shows the corpus about once"
    assert {sum(map(len, step.rows)) for each in steps for step in each} == {4}, "equal work for every rank"
    again = list(BatchOrder(sources, 24, 3, 1, 3, groups=3))
    assert sorted([*steps[2][5].rows[0], *steps[3][5].rows[0]]) == again[5].rows[0].tolist(), (
        "whatever the ranks of a group"
    )
    mixes = [[row - min(group) for row in group[:50]] for group in groups]
    assert mixes[0] != mixes[1], "each group has an order of its own"
    assert orders[0].identity != BatchOrder(sources, 24, 3).identity


def test_a_group_needs_the_blocks_of_its_part_alone():
    """Of 40 blocks each of 4 nodes asks for its 10, and for one that it shares with a neighbour."""
    one = source(4000, 100, block=100, window=2, near=2)
    asked = []
    for rank in range(4):
        steps = list(BatchOrder([one], 32, 0, rank, 4, groups=4))
        asked.append({first // 100 for step in steps for first, _ in step.ahead[0]})
        assert {row // 100 for step in steps for row in step.rows[0].tolist()} <= asked[-1]
    assert all(10 <= len(blocks) <= 11 for blocks in asked)
    assert set.union(*asked) == set(range(40))
    assert sum(map(len, asked)) <= 43


def test_rows_are_held_out_near_each_other_and_the_others_are_trained_on():
    one = source(995, 30, block=50, window=4, near=3)
    assert len(one.held_blocks) == 3
    blocks = {first // 50 for first, _ in one.held_blocks}
    assert {row // 50 for row in one.held_out.tolist()} == blocks
    assert len(one.held_out) == 30
    trained = one.training(np.arange(len(one)))
    assert sorted([*trained.tolist(), *one.held_out.tolist()]) == list(range(995))
    shown = np.concatenate(rows_of(BatchOrder([one], 5, seed=0)))
    assert sorted(shown.tolist()) == trained.tolist()
    sample = one.sample(20)
    assert len(set(sample.tolist())) == 20
    assert {row // 50 for row in sample.tolist()} == blocks
    assert not set(sample.tolist()) & set(one.held_out.tolist())
    assert BatchOrder([one], 5, seed=0).identity != BatchOrder([source(995, 30, block=50, window=4)], 5, seed=0).identity
