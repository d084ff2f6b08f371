"""Nearest training images: planted copies are found in the space in which they are copies."""

import torch

from difflens.metrics import memorisation as copying
from difflens.metrics.memorisation import find_nearest
from difflens.reports.html import Picture, Table
from difflens.reports.memorisation import copying_section


def planted() -> tuple[copying.Seen, copying.Seen, copying.Seen]:
    """Return samples, training images and test images.

    Sample 0 has the pixels of training image 30, and sample 1 has the features of training image 12.
    """
    generator = torch.Generator().manual_seed(0)

    def images(count: int) -> copying.Seen:
        pixels = torch.randint(0, 256, (count, 1, 4, 4), generator=generator, dtype=torch.uint8)
        return pixels, torch.randn(count, 6, generator=generator), torch.arange(count)

    samples, train, test = images(3), images(40), images(9)
    samples[0][0], samples[1][1] = train[0][30], train[1][12]
    return samples, train, test


def batches(seen: copying.Seen) -> list[copying.Seen]:
    return list(zip(*(part.split(7) for part in seen), strict=True))


def test_copies_are_found() -> None:
    samples, train, test = planted()
    features, pixels = find_nearest(samples, batches(train), batches(test), "some space")
    assert (features.space, int(features.rows[1, 0]), int(pixels.rows[0, 0])) == ("some space", 12, 30)
    assert (float(features.samples[1]), float(pixels.samples[0])) == (0, 0)
    assert features.samples[0] > 0.1
    difference = (samples[0][2:3].float() - train[0].float()).square().mean((1, 2, 3)).sqrt()
    torch.testing.assert_close(pixels.samples[2], difference.min())
    assert pixels.unseen is not None
    nearest = torch.cdist(test[1], train[1]).min(1).values
    torch.testing.assert_close(features.unseen, nearest)
    alone, _ = find_nearest(samples, batches(train), None, "some space")
    assert alone.unseen is None
    assert torch.equal(alone.rows, features.rows)


def test_few_test_images_are_enough(monkeypatch) -> None:
    monkeypatch.setattr(copying, "UNSEEN", 8)
    samples, train, test = planted()
    features, _ = find_nearest(samples, batches(train), batches(test), "some space")
    assert features.unseen is not None
    assert len(features.unseen) == 8


def test_the_section_says_where_was_searched() -> None:
    samples, train, test = planted()
    nearest = find_nearest(samples, batches(train), batches(test), "some space")
    section = copying_section(samples[0], nearest, lambda rows: train[0][rows], "the 40 training images of X")
    assert "the 40 training images of X" in section.text
    picture, table = section.parts
    assert isinstance(picture, Picture)
    assert isinstance(table, Table)
    assert [row[0] for row in table.rows] == ["some space", "pixels, grey levels"]
    assert table.rows[1][1] == "0"
    assert "3 samples, and of 9 test images" in table.caption
    picture.png()
