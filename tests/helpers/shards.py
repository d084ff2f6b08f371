"""WebDataset shards of a folder of images, as webdataset's own writer makes them."""

from pathlib import Path

from webdataset import TarWriter

from difflens.data.load import load_data
from difflens.data.split import FileSplit


def make_shards(tree: Path, folder: Path, images: int = 10, words: bool = False) -> str:
    """Write the images of a class folder in shards of `images`; return the pattern that names them all.

    Labels are numbers in .cls, or words in .json.
    """
    data = load_data(str(tree))
    folder.mkdir()
    counts = {}
    for name, split in (("train", data.train), ("test", data.test)):
        assert isinstance(split, FileSplit)
        assert split.root is not None
        assert split.labels is not None
        counts[name] = -(-len(split) // images)
        for number in range(counts[name]):
            with TarWriter(str(folder / f"{name}-{number:03d}.tar")) as writer:
                for row in range(number * images, min(len(split), (number + 1) * images)):
                    label = int(split.labels[row])
                    sample: dict[str, object] = {
                        "__key__": f"{row:04d}",
                        "png": (split.root / split.ids[row]).read_bytes(),
                        "txt": "a caption",
                    }
                    sample |= {"json": {"label": data.classes[label]}} if words else {"cls": label}
                    writer.write(sample)
    parts = [f"{name}-{{000..{count - 1:03d}}}" for name, count in counts.items()]
    return f"{folder}/{{{','.join(parts)}}}.tar"
