"""Pictures stay pictures on white."""

import torch

from lakerank.training.augment import augment


def test_white_stays_white_and_colours_change() -> None:
    pictures = torch.ones(6, 3, 28, 28)
    pictures[:3, :, 10:18, 10:18] = torch.tensor([0.8, 0.2, 0.1]).view(3, 1, 1)
    changed = augment(pictures, torch.Generator().manual_seed(0))
    torch.testing.assert_close(changed[3:], pictures[3:], atol=1e-5, rtol=0)
    assert float((changed[:3] - pictures[:3]).abs().mean()) > 0.01
    assert float(changed.min()) >= 0
    assert float(changed.max()) <= 1
    torch.testing.assert_close(augment(pictures, torch.Generator().manual_seed(0)), changed)
