import os
import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from difflens.data.files import list_images
from difflens.data.images import BadImage, fit, read_image
from difflens.data.loader import Batch, epoch_order, iterate, read_batches, share_of, usable_cores
from difflens.data.split import FileSplit, ImageSplit, MemorySplit
from difflens.errors import DiffLensError

Tree = Callable[..., Path]
OPTIONS = {"channels": 1, "side": 16, "batch_size": 4}


@pytest.fixture
def splits(tree: Tree) -> tuple[ImageSplit, ImageSplit]:
    """The same 11 images of 12 x 10 pixels, in files and in memory."""
    root = tree({"train": 11})
    paths = list_images([root])
    pixels = torch.stack([read_image(path) for path in paths])
    labels = torch.arange(11) % 3
    in_files = FileSplit("train", [path.relative_to(root).as_posix() for path in paths], labels, root)
    return in_files, MemorySplit("train", pixels, labels)


def joined(batches: list[Batch]) -> tuple[Tensor, Tensor, Tensor]:
    images, index, rows = (
        [getattr(batch, name) for batch in batches] for name in ("images", "index", "rows")
    )
    return torch.cat(images), torch.cat(index), torch.cat(rows)


def test_batches_come_in_the_order_asked_for(splits: tuple[ImageSplit, ImageSplit]) -> None:
    rows = torch.tensor([7, 2, 2, 10, 0])
    for split in splits:
        batches = list(iterate(split, **OPTIONS, rows=rows))
        assert [len(batch) for batch in batches] == [4, 1]
        images, index, got = joined(batches)
        assert torch.equal(got, rows)
        assert torch.equal(index, rows)
        assert torch.equal(torch.cat([b.labels for b in batches if b.labels is not None]), rows % 3)
        assert torch.equal(images, torch.stack([fit(split.image(int(row)), 1, 16) for row in rows]))


@pytest.mark.parametrize("augment", ["none", "flip", "crop"])
@pytest.mark.parametrize("side", [12, 8])  # padded, resized
def test_augmentation_depends_on_neither_batches_nor_workers_nor_place(
    splits: tuple[ImageSplit, ImageSplit], augment: str, side: int
) -> None:
    in_files, in_memory = splits
    rows = epoch_order(11, seed=1, epoch=2)

    def read(split: ImageSplit, batch_size: int, workers: int = 0, epoch: int = 2) -> Tensor:
        batches = iterate(
            split,
            channels=3,
            side=side,
            batch_size=batch_size,
            rows=rows,
            augment=augment,
            seed=5,
            epoch=epoch,
            workers=workers,
        )
        return joined(list(batches))[0]

    expected = read(in_memory, 11)
    for split, batch_size, workers in (
        (in_memory, 1, 0),
        (in_files, 11, 0),
        (in_files, 3, 0),
        (in_files, 4, 2),
    ):
        assert torch.equal(read(split, batch_size, workers), expected)
    assert torch.equal(read(in_memory, 4, epoch=3), expected) == (augment == "none")


def test_a_subset_keeps_its_augmentation(splits: tuple[ImageSplit, ImageSplit]) -> None:
    for split in splits:
        whole = joined(list(iterate(split, **OPTIONS, augment="crop")))[0]
        part = split.subset(torch.tensor([9, 4]))
        images, index, rows = joined(list(iterate(part, **OPTIONS, augment="crop")))
        assert torch.equal(images, whole[[9, 4]])
        assert (index.tolist(), rows.tolist()) == ([9, 4], [0, 1])


def test_a_subset_takes_positions_or_a_mask(splits: tuple[ImageSplit, ImageSplit]) -> None:
    for split in splits:
        mask = torch.zeros(len(split), dtype=torch.bool)
        mask[[4, 9]] = True
        for rows in (torch.tensor([4, 9]), [4, 9], (4, 9), range(4, 10, 5), mask, np.array([4, 9])):
            part = split.subset(rows)
            assert (part.index.tolist(), len(part)) == ([4, 9], 2)
        assert len(split.subset([])) == 0
        for wrong in (mask[1:], torch.tensor([1.5]), torch.tensor([[4, 9]])):
            with pytest.raises(DiffLensError, match="a subset takes positions"):
                split.subset(wrong)
        for wrong in (torch.tensor([-1]), [len(split)]):
            with pytest.raises(DiffLensError, match="positions of a subset lie in 0 to"):
                split.subset(wrong)


@pytest.fixture
def damaged(splits: tuple[ImageSplit, ImageSplit]) -> FileSplit:
    """Eleven images, of which 4 to 7 (a whole batch) and 9 cannot be read."""
    split = splits[0]
    assert isinstance(split, FileSplit)
    for row in (4, 5, 6, 7):
        path = split.root / split.ids[row]
        path.write_bytes(path.read_bytes()[:100])
    (split.root / split.ids[9]).unlink()
    return split


@pytest.mark.parametrize("workers", [0, 2])
def test_skip_leaves_bad_images_out_and_lists_each_once(damaged: FileSplit, workers: int) -> None:
    bad: list[str] = []
    for _ in range(2):
        batches = list(iterate(damaged, **OPTIONS, workers=workers, on_bad_image="skip", bad=bad))
        assert [batch.rows.tolist() for batch in batches] == [[0, 1, 2, 3], [8, 10]]
        assert batches[1].labels is not None
        assert batches[1].labels.tolist() == [2, 1]
    assert [line.split(": ")[0] for line in bad] == [damaged.ids[row] for row in (4, 5, 6, 7, 9)]
    assert "no such file" in bad[-1]


@pytest.mark.parametrize("workers", [0, 2])
def test_another_image_takes_the_place_of_a_bad_one(damaged: FileSplit, workers: int) -> None:
    bad: list[str] = []
    options = {**OPTIONS, "workers": workers, "on_bad_image": "skip", "bad": bad, "replace": True}
    batches = list(iterate(damaged, rows=torch.tensor([4, 3, 9, 7, 10]), **options))
    assert [batch.rows.tolist() for batch in batches] == [[8, 3, 10, 8], [10]]
    assert batches[0].labels is not None
    assert batches[0].labels.tolist() == [2, 0, 1, 2]
    assert [line.split(": ")[0] for line in bad] == [damaged.ids[row] for row in (4, 5, 6, 7, 9)]
    for row in range(11):
        (damaged.root / damaged.ids[row]).write_bytes(b"?")
    with pytest.raises(BadImage, match="no image after it takes its place"):
        list(iterate(damaged, **options))


@pytest.mark.parametrize("workers", [0, 2])
def test_error_raises_the_bad_image_itself(damaged: FileSplit, workers: int) -> None:
    with pytest.raises(BadImage) as caught:
        list(iterate(damaged, **OPTIONS, workers=workers))
    assert type(caught.value) is BadImage
    assert str(damaged.root / damaged.ids[4]) in str(caught.value)
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_reading_leaves_the_global_generator_alone(
    splits: tuple[ImageSplit, ImageSplit], workers: int
) -> None:
    before = torch.get_rng_state()
    for split in splits:
        list(iterate(split, **OPTIONS, augment="crop", workers=workers))
        epoch_order(11, seed=0, epoch=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_unlabelled_images_have_no_labels(splits: tuple[ImageSplit, ImageSplit]) -> None:
    pixels = splits[1].pixels
    assert pixels is not None
    assert next(iterate(MemorySplit("train", pixels), **OPTIONS)).labels is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("augment", ["none", "flip", "crop"])
def test_the_gpu_gives_the_same_batches(splits: tuple[ImageSplit, ImageSplit], augment: str) -> None:
    for split in splits:
        on_cpu = joined(list(iterate(split, channels=1, side=12, batch_size=4, augment=augment)))
        on_gpu = joined(
            list(iterate(split, channels=1, side=12, batch_size=4, augment=augment, device="cuda"))
        )
        assert all(tensor.is_cuda for tensor in on_gpu)
        assert all(torch.equal(one, other.cpu()) for one, other in zip(on_cpu, on_gpu, strict=True))


# --- the order of an epoch ---


def test_shuffled_shares_are_equal_and_cover_everything() -> None:
    shares = [epoch_order(10, seed=0, epoch=1, rank=rank, world=4) for rank in range(4)]
    assert [len(share) for share in shares] == [3, 3, 3, 3]
    assert set(torch.cat(shares).tolist()) == set(range(10))
    more_processes_than_images = [epoch_order(2, 0, 0, rank, 5) for rank in range(5)]
    assert [len(share) for share in more_processes_than_images] == [1] * 5


def test_unshuffled_shares_contain_every_row_once() -> None:
    shares = [share_of(10, rank, 4) for rank in range(4)]
    assert sorted(torch.cat(shares).tolist()) == list(range(10))
    assert share_of(5, 0, 1).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("change", [{"epoch": 2}, {"seed": 1}, {"seed": 1 << 40}])
def test_the_order_follows_seed_and_epoch(change: dict[str, int]) -> None:
    order: Callable[..., Tensor] = epoch_order
    first = order(1000, seed=0, epoch=1)
    assert sorted(first.tolist()) == list(range(1000))
    assert torch.equal(first, order(1000, seed=0, epoch=1))
    assert (first == order(1000, **({"seed": 0, "epoch": 1} | change))).float().mean() < 0.02


def test_an_image_in_a_split_of_absolute_paths(tree: Tree) -> None:
    path: Path = tree({"a": 1}) / "a/0.png"
    assert torch.equal(FileSplit("images", [str(path)]).image(0), read_image(path))


class LargeBatches(Dataset[list[Tensor]]):
    """Batches of 64 KiB, whose worker may make files, and so shared memory, of `limit` bytes."""

    def __init__(self, limit: int):
        self.limit = limit

    def __getitem__(self, key: int) -> list[Tensor]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.limit, self.limit))
        return [torch.full((2**16,), key, dtype=torch.uint8)]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system grants no single cores")
def test_only_cores_that_are_granted_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    granted = os.sched_getaffinity(0)
    assert usable_cores() == len(granted)
    os.sched_setaffinity(0, {min(granted)})
    try:
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, granted)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(len(granted)))
    assert usable_cores() == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(8 * len(granted)))
    assert usable_cores() == 1


def test_too_little_shared_memory_is_said() -> None:
    read = read_batches(LargeBatches(2**20), lambda: iter([3]), 1, workers=1)
    assert [int(batch[0].sum()) for batch in read] == [3 * 2**16]
    with pytest.raises(DiffLensError, match=r"too little shared memory .*use --workers 0"):
        next(read_batches(LargeBatches(2**12), lambda: iter([3]), 1, workers=1))
