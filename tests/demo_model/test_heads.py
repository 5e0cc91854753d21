from __future__ import annotations

import torch
from torch import nn

from deploy.demo.layout import Shape
from tests.demo_model.heads import VisionHeads, cell_loss, own_cell_loss
from tests.demo_model.labels import SIDE, TOKENS


def test_a_cell_is_a_column_and_a_row_whatever_the_tile() -> None:
    token = torch.tensor([0, SIDE + 3, 2 * TOKENS + SIDE + 3])
    states = torch.zeros(3, 2 * SIDE)
    for number, (column, row) in enumerate(((0, 0), (3, 1), (3, 1))):
        states[number, column] = states[number, SIDE + row] = 50.0
    loss, right = cell_loss(nn.Identity(), states, token)
    assert loss.item() < 1e-6
    assert right == 1.0
    _, swapped = cell_loss(nn.Identity(), states.roll(SIDE, 1), token)
    assert 0 < swapped < 1  # only the corner is the same either way


def test_a_head_learns_each_tokens_own_cell() -> None:
    torch.manual_seed(0)
    heads = VisionHeads(Shape())
    tokens = torch.randn(1, TOKENS, Shape().text_hidden).expand(3, -1, -1)
    optimiser = torch.optim.Adam(heads.token_cell.parameters(), lr=0.05)
    for _ in range(40):
        loss, right = own_cell_loss(heads, tokens)
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
    assert right > 0.95
