import threading

from hypothesis import given
from hypothesis import strategies as st

from graft.core.route import Route, current, installed, spans


@given(st.lists(st.sampled_from([None, "a", "b", "c"])))
def test_spans_cover_every_row_once_and_each_adapter_has_one(rows):
    order, groups = spans(rows)
    assert sorted(order) == list(range(len(rows)))
    assert [name for name, _, _ in groups] == sorted(set(rows), key=lambda n: (n is not None, n or ""))
    assert [rows[i] for i in order] == [name for name, a, b in groups for _ in range(a, b)]


def test_equal_rows_keep_their_order():
    assert spans(["b", "a", "b", "a"])[0] == [1, 3, 0, 2]


def test_a_route_is_seen_by_its_own_thread_only_and_goes_when_the_block_ends():
    seen = []
    with installed(Route((("a", 0, 1),), 1)):
        inside = current()
        thread = threading.Thread(target=lambda: seen.append(current()))
        thread.start()
        thread.join()
    assert inside.spans == (("a", 0, 1),) and seen == [None] and current() is None
