"""Published sizes of data sets, for what is planned before they are at hand."""

from dataclasses import dataclass
from pathlib import PurePath


@dataclass(frozen=True)
class PublishedSet:
    """A data set as its authors describe it: number of training and of test images, and of classes."""

    title: str
    train: int
    test: int
    classes: int
    channels: int = 3


# by the name of the data set in --data, or by the name of its folder, in lower case
_SETS = {
    "aircraft": PublishedSet("FGVC-Aircraft", 6_667, 3_333, 100),
    "cars": PublishedSet("Stanford Cars", 8_144, 8_041, 196),
    "cub": PublishedSet("CUB-200-2011", 5_994, 5_794, 200),
    "dogs": PublishedSet("Stanford Dogs", 12_000, 8_580, 120),
    "flowers": PublishedSet("Oxford Flowers-102", 2_040, 6_149, 102),
    "nabirds": PublishedSet("NABirds", 23_929, 24_633, 555),
    "fashion-full": PublishedSet("Fashion-MNIST", 60_000, 10_000, 10, channels=1),
    "torchvision:cifar10": PublishedSet("CIFAR-10", 50_000, 10_000, 10),
    "torchvision:cifar100": PublishedSet("CIFAR-100", 50_000, 10_000, 100),
    "imagenet": PublishedSet("ImageNet-1k", 1_281_167, 50_000, 1000),
    # fifty classes of ImageNet (Van Gansbeke et al., 2020)
    "imagenet50": PublishedSet("ImageNet-50", 64_274, 2_500, 50),
    # its challenge of scene parsing
    "adechallengedata2016": PublishedSet("ADE20K", 20_210, 2_000, 150),
    "coco": PublishedSet("COCO 2017", 118_287, 5_000, 80),
}

LABEL_LISTS = {"1percent.txt": 12_811, "10percent.txt": 128_116}
"""The number of images in SimCLR's lists for ImageNet, by the name of the file."""


def published_set(spec: str) -> PublishedSet | None:
    """Return the data set that `spec`, an argument of `load_data`, names; None if its size is not known."""
    found = _SETS.get(spec.lower())
    return found or _SETS.get(PurePath(spec.removeprefix("folder:")).name.lower())
