"""WebDataset shards: tar files in which the files of one sample have one key, as in 0042.jpg and 0042.cls.

The headers of all shards are read at the start. An image is read from its place in its shard when it is
needed, so nothing is unpacked, and results are those of the same images in a folder.
"""

import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from itertools import groupby
from math import prod
from os.path import commonpath
from pathlib import Path

import torch
from torch import Tensor

from difflens.data.content import content_digest
from difflens.data.images import BadImage, check_storage, decode_image
from difflens.data.split import ImageData, ImageSplit, hold_out
from difflens.errors import DiffLensError, counted, expanded, listing
from difflens.run.text import on_disk

_IMAGES = ("jpg", "jpeg", "png", "webp")
_LABELS = ("cls", "json")
_MOST_LABEL = 2**20  # bytes of a label's file
_MOST_SHARDS = 100_000
_BLOCK = tarfile.BLOCKSIZE
_SPLIT = re.compile(r"(?<![a-z])(train|test|val|valid|validation)(?![a-z])", re.IGNORECASE)
_NUMBERS = re.compile(r"\{(-?\d{1,18})\.\.(-?\d{1,18})")


class ShardSplit(ImageSplit):
    """Images in tar files.

    Args:
        name: the name of the split.
        keys: SHARD/KEY.EXTENSION of each image, where SHARD is a path relative to `root`.
        labels: (N,) long, or None.
        shards: the paths of the tar files, relative to `root`.
        places: (N, 3) long: number of the shard, first byte, and number of bytes of each image.
        root: the folder of the shards.
    """

    def __init__(
        self,
        name: str,
        keys: Sequence[str],
        labels: Tensor | None,
        shards: Sequence[str],
        places: Tensor,
        root: Path,
    ) -> None:
        super().__init__(name, keys, labels)
        self.shards, self.places, self.root = shards, places, root

    def image(self, i: int) -> Tensor:
        number, start, size = self.places[i].tolist()
        shard = self.root / self.shards[number]
        key = self.ids[i][len(self.shards[number]) + 1 :].rpartition(".")[0]
        where = f"{shard}, key {key}"
        try:
            with shard.open("rb") as file:
                file.seek(start)
                content = file.read(size)
        except OSError as error:
            check_storage(error, where)
            raise BadImage(where, error.strerror or str(error)) from error
        if not content:
            raise BadImage(where, "the file is empty")
        return decode_image(BytesIO(content), where)

    def content(self, rows: Sequence[int]) -> str | None:
        used = self.places[torch.tensor(rows, dtype=torch.long), 0].unique().tolist()
        return content_digest([self.root / self.shards[number] for number in used])


def load_shards(pattern: str, spec: str, labels: bool = True) -> ImageData:
    """Load shards of training and of test images.

    A shard belongs to the split that its path names: train, and test, val, valid or validation. Of these,
    test comes first. Without such names all shards are split 4 : 1, class by class, and so are training
    shards alone. A label is a whole number in KEY.cls, or "label", a number or a word, in KEY.json.

    Args:
        pattern: paths of local tar files, with braces: "data/{train,val}-{000..127}.tar".
        labels: False reads no labels.

    Raises:
        DiffLensError: `webdataset` is not installed; a shard is missing, cut or no plain tar file; or a
            sample has no image, no label, several images, or the key of another.
    """
    train, test = _splits(_shards(pattern))
    name = Path(pattern).name
    samples = _samples(train, labels)
    values = sorted({sample.label for sample in samples}, key=lambda value: (isinstance(value, str), value))
    if labels and isinstance(values[0], int) and isinstance(values[-1], str):
        raise DiffLensError(f"{pattern} has labels that are numbers and labels that are words")
    number = {value: k for k, value in enumerate(values)}
    classes = tuple(on_disk(str(value)) for value in values) if labels else ()
    trained = _split("train", train, samples, number if labels else None)
    if not test:
        return ImageData(spec, name, classes, *hold_out(trained))
    others = _samples(test, labels)
    unknown = [sample for sample in others if sample.label not in number]
    if labels and unknown:
        raise DiffLensError(
            f"{unknown[0].shard}, key {unknown[0].key}: no training image has its label {unknown[0].label!r}"
        )
    return ImageData(spec, name, classes, trained, _split("test", test, others, number if labels else None))


def has_test_shards(pattern: str) -> bool:
    """Return True if shards of a test split are named; errors as for `load_shards`."""
    return bool(_splits(_shards(pattern))[1])


def load_shards_unlabelled(pattern: str) -> ImageSplit:
    """Load the images of the training shards, without labels; arguments and errors as for `load_shards`."""
    shards = _splits(_shards(pattern))[0]
    return _split("train", shards, _samples(shards, labels=False), None)


@dataclass
class _Sample:
    """The files of one key in a shard.

    Attributes:
        images: extension, first byte and number of bytes of each image.
        label: the number or the word of the class.
    """

    shard: Path
    key: str
    images: list[tuple[str, int, int]] = field(default_factory=list)
    label: int | str | None = None

    def error(self, reason: str) -> DiffLensError:
        return DiffLensError(f"{self.shard}, key {self.key}: {reason}")


def _shards(pattern: str) -> list[Path]:
    """Return the tar files that a pattern names, in its order."""
    try:
        from webdataset.shardlists import expand_urls
    except ImportError as error:
        raise DiffLensError('WebDataset shards need `pip install "difflens[shards]"`') from error
    if re.match(r"pipe:|[a-z][a-z0-9+.-]*://", pattern, re.IGNORECASE):
        raise DiffLensError(f"wds:{pattern} names no local files: copy the shards to a disk first")
    ranges = [abs(int(last) - int(first)) + 1 for first, last in _NUMBERS.findall(pattern)]
    if prod(ranges) > _MOST_SHARDS:
        raise DiffLensError(
            f"wds:{pattern} names {counted(prod(ranges), 'shard')}; at most {_MOST_SHARDS:,} are read"
        )
    try:
        shards = [expanded(name) for name in expand_urls(pattern)]
    except ValueError as error:
        raise DiffLensError(f"wds:{pattern} has braces without a partner") from error
    missing = [str(path) for path in shards if not path.is_file()]
    if missing:
        raise DiffLensError(
            f"wds:{pattern} names {counted(len(shards), 'shard')}, of which {len(missing)} "
            f"{'is no file' if len(missing) == 1 else 'are no files'}: "
            f"{listing(missing)}"
        )
    if len({*shards}) < len(shards):
        raise DiffLensError(f"wds:{pattern} names a shard twice")
    return shards


def _splits(shards: list[Path]) -> tuple[list[Path], list[Path]]:
    """Return the shards of the training split and of the test split, which may be empty."""
    root = commonpath([shard.absolute().parent for shard in shards])
    named: dict[str, list[Path]] = {}
    for shard in shards:
        words = {word.lower() for word in _SPLIT.findall(shard.absolute().relative_to(root).as_posix())}
        if len(words) > 1:
            raise DiffLensError(f"{shard} names several splits: {listing(sorted(words))}")
        named.setdefault(words.pop() if words else "", []).append(shard)
    if [*named] == [""]:
        return shards, []
    if "" in named:
        raise DiffLensError(
            f"{named[''][0]} names no split, and other shards do: train, or test, val, valid or validation"
        )
    if "train" not in named:
        raise DiffLensError(
            f"of {counted(len(shards), 'shard')} none is for training: they name {listing([*named])}"
        )
    tests = [named[word] for word in ("test", "val", "valid", "validation") if word in named]
    return named["train"], tests[0] if tests else []


def _samples(shards: Sequence[Path], labels: bool) -> list[_Sample]:
    """Return the samples of shards in order."""
    found = [sample for shard in shards for sample in _samples_of(shard, labels)]
    if not found:
        raise DiffLensError(f"there is no sample in {listing(shards)}")
    return found


def _samples_of(shard: Path, labels: bool) -> Iterator[_Sample]:
    keys = set()
    with _opened(shard) as tar:
        for key, files in groupby(_files(shard, tar), key=lambda file: file[0]):
            sample = _Sample(shard, key)
            if key in keys:
                raise sample.error("the key is there twice, and the files of a sample stand together")
            keys.add(key)
            given = {}
            for _, extension, member in files:
                if extension in _IMAGES:
                    sample.images.append((extension, member.offset_data, member.size))
                elif extension in _LABELS and labels:
                    given[extension] = member
            if len(sample.images) != 1:
                count = counted(len(sample.images), "image") if sample.images else "no images"
                raise sample.error(f"it has {count}; a sample has one, .jpg, .png or .webp")
            if labels:
                sample.label = _label(sample, tar, given)
            yield sample


def _files(shard: Path, tar: tarfile.TarFile) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """Yield key, extension in lower case, and header of each file in a shard.

    Raises:
        DiffLensError: the shard does not end as a tar file does.
    """
    from webdataset.tariterators import base_plus_ext, meta_prefix, meta_suffix

    end, last = 0, "its start"
    try:
        for member in tar:
            if member.size < 0:
                raise tarfile.ReadError("a file has a negative size")
            if member.issparse():
                raise tarfile.ReadError(f"{member.name} is sparse")
            key, extension = base_plus_ext(member.name)
            if member.isreg():
                end = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
                hidden = member.name.startswith(meta_prefix) and member.name.endswith(meta_suffix)
                if key is not None and not hidden:
                    last = f"key {key}"
                    yield key, extension.lower(), member
            else:
                end = member.offset_data
        assert tar.fileobj is not None
        tar.fileobj.seek(end)
        whole = tar.fileobj.read(_BLOCK) == bytes(_BLOCK)  # a tar file ends with blocks of zeros
    except (tarfile.TarError, OSError, ValueError) as error:
        raise DiffLensError(f"{shard} is cut or damaged at or behind {last}: {error}") from error
    if not whole:
        raise DiffLensError(f"{shard} is cut or damaged behind {last}: no end of a tar file follows")


def _opened(shard: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(shard, "r:")
    except (tarfile.TarError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise DiffLensError(
            f"{shard} cannot be read as a tar file ({reason or error}); a compressed one must be unpacked to "
            ".tar first"
        ) from error


def _label(sample: _Sample, tar: tarfile.TarFile, given: dict[str, tarfile.TarInfo]) -> int | str:
    """Return the label of a sample from its .cls, else from its .json."""
    for extension in _LABELS:
        if extension not in given:
            continue
        member = given[extension]
        file = tar.extractfile(member)
        if member.size > _MOST_LABEL or file is None:
            raise sample.error(
                f"its .{extension} has {counted(member.size, 'byte')}; a label has at most {_MOST_LABEL:,}"
            )
        content = file.read()
        if extension == "cls":
            if not re.fullmatch(rb"\s*\d{1,9}\s*", content):
                raise sample.error(f"its .cls is {content[:40]!r}, and no class number")
            return int(content)
        try:
            label = json.loads(content)["label"]
        except (ValueError, KeyError, TypeError, RecursionError):
            label = None
        if isinstance(label, int) and not isinstance(label, bool) and label >= 0:
            return label
        if not isinstance(label, str) or not label.strip():
            raise sample.error('its .json has no "label" that is a class number or a word')
        return label
    raise sample.error("it has no label: a .cls, or a .json with a label")


def _split(
    name: str, shards: Sequence[Path], samples: Sequence[_Sample], number: dict[int | str | None, int] | None
) -> ShardSplit:
    """Return a split of samples, with labels by `number`."""
    root = Path(commonpath([shard.absolute().parent for shard in shards]))
    names = [shard.absolute().relative_to(root).as_posix() for shard in shards]
    order = {shard: k for k, shard in enumerate(shards)}
    keys, places = [], []
    for sample in samples:
        extension, start, size = sample.images[0]
        keys.append(f"{names[order[sample.shard]]}/{sample.key}.{extension}")
        places.append((order[sample.shard], start, size))
    labels = None if number is None else torch.tensor([number[sample.label] for sample in samples])
    return ShardSplit(name, keys, labels, names, torch.tensor(places), root)
