"""The dense loader: image and labels change together, and the seed decides the changes."""

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import tv_tensors

from difflens.data.dense.base import IGNORED
from difflens.data.dense.coco import load_coco
from difflens.data.dense.masks import load_masks
from difflens.data.dense.samples import GREY, DenseAugmentation, Samples, scaled_size, to_square
from difflens.data.images import BadImage


def masked(folder: Path, augmentation: DenseAugmentation | None, seed: int = 0, workers: int = 0) -> Samples:
    split = load_masks(folder).train

    def labels(row: int) -> dict[str, torch.Tensor]:
        # the image itself is the mask, so both must change in the same way
        return {"mask": split.image(row)[0]}

    return Samples(split, labels, 3, augmentation, seed, workers=workers)


@pytest.mark.parametrize("whole", [False, True])
def test_image_and_mask_change_together(scene_folder: Path, whole: bool) -> None:
    samples = masked(scene_folder, DenseAugmentation(24, whole, (0.6, 1.6), True, IGNORED))
    for _, images, labels in samples.training(0, 3, 4):
        for image, each in zip(images, labels, strict=True):
            assert image.shape == (3, 24, 24)
            assert image.dtype == torch.uint8
            seen = each["mask"] != IGNORED
            assert (image[:, ~seen] == GREY).all()
            # nearest against bilinear: alike but at edges
            difference = (image[0].int() - each["mask"].int()).abs()[seen]
            assert (difference > 40).float().mean() < 0.1


def test_a_mask_stays_where_its_image_is() -> None:
    """The mean of a mask's columns, scaled, is that of the resized mask; likewise of its box."""
    torch.manual_seed(0)
    scale = DenseAugmentation(64, True, (1.0, 1.0), False).transform()
    shifts = []
    for _ in range(200):
        left, top = (int(torch.randint(0, 60, ())) for _ in range(2))
        width, height = (int(torch.randint(20, 100, ())) for _ in range(2))
        mask = torch.zeros(1, 167, 167, dtype=torch.uint8)
        mask[:, top : top + height, left : left + width] = 1
        image = tv_tensors.Image(torch.zeros(3, 167, 167, dtype=torch.uint8))
        _, found = scale((image, tv_tensors.Mask(mask)))
        for dim, first, length in ((0, left, width), (1, top, height)):
            positions = found[0].any(dim).nonzero()[:, 0].double()
            shifts.append(float(positions.mean()) + 0.5 - (first + length / 2) * 64 / 167)
    assert abs(sum(shifts) / len(shifts)) < 0.05
    assert max(map(abs, shifts)) < 0.6


def test_batches_depend_on_the_seed_alone(scene_folder: Path) -> None:
    def batches(samples: Samples, start: int, stop: int) -> list[torch.Tensor]:
        return [torch.stack(images) for _, images, _ in samples.training(start, stop, 5)]

    augmentation = DenseAugmentation(24, False, (0.6, 1.6), True)
    whole = batches(masked(scene_folder, augmentation), 0, 4)
    torch.manual_seed(99)
    later = batches(masked(scene_folder, augmentation, workers=1), 2, 4)
    assert all(map(torch.equal, whole[2:], later))
    assert not torch.equal(whole[0], batches(masked(scene_folder, augmentation, seed=1), 0, 1)[0])
    state = torch.random.get_rng_state()
    batches(masked(scene_folder, augmentation), 0, 1)
    assert torch.equal(state, torch.random.get_rng_state())


def test_every_epoch_has_every_image_and_processes_share_batches(scene_folder: Path) -> None:
    samples = masked(scene_folder, None)
    rows = [row for batch, _, _ in samples.training(0, 6, 4) for row in batch]
    assert sorted(rows[:12]) == sorted(rows[12:]) == list(range(12))
    assert rows[:12] != rows[12:]
    shares = [[batch for batch, _, _ in samples.training(0, 6, 4, rank, 2)] for rank in (0, 1)]
    joined = [
        row
        for one, other in zip(*shares, strict=True)
        for pair in zip(one, other, strict=True)
        for row in pair
    ]
    assert joined == rows


def test_boxes_go_round_what_is_left_of_a_mask(scene_folder: Path) -> None:
    split = load_coco(scene_folder).train
    for masks in (True, False):
        samples = Samples(
            split, partial(split.target, masks=masks), 3, DenseAugmentation(20, False, (0.8, 1.5), True)
        )
        kept = 0
        for _, images, labels in samples.training(0, 12, 1):
            assert images[0].shape == (3, 20, 20)
            boxes = labels[0]["boxes"]
            assert len(boxes) == len(labels[0]["labels"])
            assert (boxes >= 0).all()
            assert (boxes <= 20).all()
            assert (boxes[:, 2:] > boxes[:, :2]).all()
            kept += len(boxes)
            for box, mask in zip(boxes.tolist(), labels[0].get("masks", ()), strict=False):
                rows, columns = np.nonzero(mask.numpy())
                assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert kept > 5


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_breaks_off_is_named(workers: int, scene_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(scene_folder, tmp_path / "scenes")
    path = tmp_path / "scenes" / "images" / "train" / "00003.png"
    split = load_coco(tmp_path / "scenes").train
    path.write_bytes(path.read_bytes()[:-60])  # of other formats than PNG only this decoding notices it
    samples = Samples(split, partial(split.target, masks=True), 3, workers=workers)
    with pytest.raises(BadImage, match=r"00003\.png"):
        list(samples.all(torch.arange(len(split)), 4))


def test_a_batch_from_another_process_is_the_same_in_few_tensors(scene_folder: Path) -> None:
    split = load_coco(scene_folder).train
    ours, theirs = (
        Samples(
            split,
            partial(split.target, masks=True),
            3,
            DenseAugmentation(20, True, (0.8, 1.5), True),
            workers=workers,
        )
        for workers in (0, 1)
    )
    for mine, other in zip(ours.training(0, 6, 4), theirs.training(0, 6, 4), strict=True):
        assert mine[0] == other[0]
        assert all(torch.equal(*images) for images in zip(mine[1], other[1], strict=True))
        for labels, same in zip(mine[2], other[2], strict=True):
            assert [*labels] == ["boxes", "labels", "masks"] == [*same]
            assert all(torch.equal(labels[key], same[key]) for key in labels)
    packed = ours[[(row, 1) for row in range(4)]]
    assert not isinstance(packed, BadImage)
    _, images, labels = packed
    assert all(isinstance(each, tuple) for each in (images, *labels.values()))


def test_sizes_and_squares() -> None:
    assert scaled_size((50, 100), 20, whole=True) == (10, 20)
    assert scaled_size((50, 100), 20, whole=False) == (20, 40)
    assert scaled_size((1, 400), 20, whole=True) == (1, 20)
    square = to_square(torch.zeros(3, 4, 9, dtype=torch.uint8), 6)
    assert square.shape == (3, 6, 9)
    assert (square[:, 4:] == GREY).all()
