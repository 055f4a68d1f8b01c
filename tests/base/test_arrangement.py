"""The arrangement of rows, against rows written down by hand."""

import pytest
import torch

from graft.base.arrangement import arranged

TEXT = torch.tensor([[1, 2, 3, 4]])
FRONT, BACK = torch.tensor([[70, 71]]), torch.tensor([[80]])
# mask of the text, live front, live back: causal row, other row (0 is whatever the mask hides)
ROWS = {
    "whole": ([1, 1, 1, 1], [1, 1], [1], [70, 71, 1, 2, 3, 4, 80], [70, 71, 1, 2, 3, 4, 80]),
    "left": ([0, 0, 1, 1], [1, 1], [1], [0, 0, 70, 71, 3, 4, 80], [70, 71, 3, 4, 80, 0, 0]),
    "right": ([1, 1, 0, 0], [1, 1], [1], [70, 71, 1, 2, 80, 0, 0], [70, 71, 1, 2, 80, 0, 0]),
    "hole": ([1, 0, 1, 1], [1, 1], [0], [70, 71, 1, 0, 3, 4, 0], [70, 71, 1, 0, 3, 4, 0]),
    "shorter": ([0, 1, 1, 1], [0, 1], [0], [0, 0, 71, 2, 3, 4, 0], [71, 2, 3, 4, 0, 0, 0]),
    "bare": ([1, 1, 1, 1], [0, 0], [0], [0, 0, 1, 2, 3, 4, 0], [1, 2, 3, 4, 0, 0, 0]),
}


@pytest.mark.parametrize("case", ROWS)
@pytest.mark.parametrize("causal", [True, False])
def test_what_is_read_stands_together(case, causal):
    mask, front, back, causal_row, other_row = ROWS[case]
    places = arranged(*(torch.tensor([side]) for side in (front, mask, back)), causal=causal)
    row = places.taken(FRONT, TEXT, BACK) * places.mask
    assert row.tolist() == [causal_row if causal else other_row]
    assert (places.text_of(row) == TEXT * torch.tensor([mask])).all(), "the text is found again"
    assert (places.back_of(row) == BACK * torch.tensor([back])).all()


def test_states_are_taken_row_by_row():
    mask = torch.tensor([[0, 1], [1, 1]])
    places = arranged(torch.ones(2, 1), mask, torch.zeros(2, 0), causal=True)
    states = torch.arange(12.0).view(2, 3, 2)
    assert torch.equal(places.text_of(states)[0], states[0, [0, 2]])
    assert torch.equal(places.text_of(states)[1], states[1, [1, 2]])
