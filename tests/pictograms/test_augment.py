"""Images that training changes at random."""

from __future__ import annotations

import numpy as np
import torch

from lakerank_pictograms.curriculum.augment import augment_all


def test_augmentation_keeps_white_white_and_changes_colours() -> None:
    images = [np.ones((28, 28, 3), np.float32) for _ in range(6)] + [np.ones((56, 28, 3), np.float32)]
    for image in images[:3]:
        image[10:18, 10:18] = (0.8, 0.2, 0.1)
    torch.manual_seed(0)
    changed = augment_all(images)
    assert [image.shape for image in changed] == [image.shape for image in images]
    np.testing.assert_allclose(changed[3:6], images[3:6], atol=1e-5)
    assert np.abs(np.array(changed[:3]) - np.array(images[:3])).mean() > 0.01
    assert min(image.min() for image in changed) >= 0
    assert max(image.max() for image in changed) <= 1
    torch.manual_seed(0)
    assert all(np.array_equal(*pair) for pair in zip(augment_all(images), changed, strict=True))
