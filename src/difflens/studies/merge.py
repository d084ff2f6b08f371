"""`difflens extract --merge`: the parts of an extraction, which never met, become one store."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from difflens.backbones.config import CONDITION_FILE
from difflens.configs.earlier import upgraded
from difflens.configs.extract import ExtractConfig
from difflens.errors import DiffLensError, counted, expanded, listing
from difflens.extractors.manifest import MANIFEST, Manifest, read_manifest
from difflens.extractors.store import IMAGES, check_file, read_checksums, verified
from difflens.results.extract import ExtractResult
from difflens.run.console import progress_bar
from difflens.run.directory import FINISHED, RunDirectory, read_record
from difflens.run.files import checksum
from difflens.run.processes import accelerator
from difflens.run.reading import read_json, short
from difflens.studies.closing import close_store, files_of

# names of the same thing may differ between machines; fingerprints may not
_NAMES = ("spec", "name", "autoencoder")
_MOST = 64 * 2**20  # bytes of a manifest


@dataclass(frozen=True)
class _Part:
    """A finished extraction of some shards.

    Attributes:
        path: its folder.
        record: its configuration.
        manifest: the store of which it is a part.
        files: the checksums of its files of features and latents, by name.
    """

    path: Path
    record: dict[str, Any]
    manifest: Manifest
    files: dict[str, str]

    @classmethod
    def read(cls, path: Path) -> "_Part":
        if not (path / MANIFEST).is_file():
            raise DiffLensError(f"{path} is not a feature store: there is no {MANIFEST} in it")
        if not (path / FINISHED).is_file():
            raise DiffLensError(f"{path} is not finished: complete it with `difflens extract --resume`")
        manifest = read_manifest(path / MANIFEST)
        recorded = read_checksums(path)
        known = files_of(manifest.layout, manifest.layout.shards, manifest.format)
        files = {name: digest for name, digest in recorded.items() if name in known}
        described = {name: digest for name, digest in recorded.items() if name not in known}
        damaged = [name for name, intact in verified(path, described) if not intact]
        if damaged:
            raise DiffLensError(f"{path / damaged[0]} is damaged: its checksum is another")
        return cls(path, upgraded(read_record(path)), manifest, files)


def merge(config: ExtractConfig, announce: Callable[[str], object]) -> ExtractResult:
    """Copy the shards of several parts into one store, which has the bytes of a single extraction.

    Raises:
        DiffLensError: a part is no finished store or damaged; backbone, places, seed or another setting
            differ; the parts list other images; a shard is in two parts, or in none; or several processes
            run.
    """
    if accelerator("cpu").num_processes > 1:
        raise DiffLensError("extract --merge runs in one process")
    paths = [expanded(path) for path in config.merge or ()]
    if len({path.absolute() for path in paths}) < max(2, len(paths)):
        raise DiffLensError("--merge takes two or more different stores")
    parts = [_Part.read(path) for path in paths]
    first = parts[0]
    for other in parts[1:]:
        _check_same(first, other)
    owner = _owners(parts)
    layout, suffix = first.manifest.layout, first.manifest.format
    shards = files_of(layout, layout.shards, suffix)
    total = sum((owner[name].path / name).stat().st_size for name in shards)
    announce(
        f"Merging {counted(len(parts), 'part')}: {counted(len(shards), 'file')}, {counted(total, 'byte')} "
        f"({total / 1e9:.3g} GB)"
    )
    record = {key: value for key, value in first.record.items() if key != "command"} | {"part": None}
    run = RunDirectory(config.out, "extract", record, resume=None)
    with run.working():
        free = shutil.disk_usage(run.path).free
        if total > free:
            raise DiffLensError(
                f"{run.path} needs {total / 1e9:.3g} GB, and {free / 1e9:.3g} GB are free there"
            )
        for name in [MANIFEST, *(f"{split}/{IMAGES}" for split in layout.images), CONDITION_FILE]:
            if (first.path / name).exists():  # only networks that read text have an embedding of the prompt
                _copy(run, first.path / name, name)
        digests: dict[str, str] = {}
        with progress_bar(True) as bar:
            task = bar.add_task("merging", total=len(shards), note="")
            for name, shard in shards.items():
                source = owner[name]
                _copy(run, source.path / name, name)
                digests[name] = checksum(run.path / name)
                if digests[name] != source.files[name]:
                    raise DiffLensError(f"{source.path / name} is damaged: its checksum is another")
                if suffix == "safetensors":
                    latents = name == shard.latents_path.as_posix()
                    check_file(run.path / name, shard, layout, latents=latents)
                bar.update(task, advance=1)
        metrics = close_store(run.path, layout, layout.shards, suffix, digests)
        run.write_json(FINISHED, metrics)
    return ExtractResult.from_metrics(metrics, config.out)


def _copy(run: RunDirectory, source: Path, name: str) -> None:
    run.write_with(name, lambda temporary: shutil.copyfile(source, temporary))


def _check_same(first: _Part, other: _Part) -> None:
    """Raise DiffLensError that names the settings in which two parts differ."""
    mine, theirs = (_settings(part.path) for part in (first, other))
    different = [
        f"{name} is {short(mine.get(name))} and {short(theirs.get(name))}"
        for name in {**mine, **theirs}
        if mine.get(name) != theirs.get(name)
    ]
    if different:
        raise DiffLensError(
            f"{first.path} and {other.path} are no parts of one store: {'; '.join(different)}"
        )
    for split in first.manifest.images:
        name = f"{split}/{IMAGES}"
        if checksum(first.path / name) != checksum(other.path / name):
            raise DiffLensError(f"{first.path} and {other.path} list other images or labels in {name}")


def _settings(path: Path) -> dict[str, Any]:
    """Return the fields of a manifest, those of its groups as "backbone fingerprint", without names."""
    content = read_json(path / MANIFEST, dict[str, Any], _MOST)
    settings: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, Mapping) and name in ("backbone", "data", "preprocessing"):
            settings |= {f"{name} {key}": each for key, each in value.items() if key not in _NAMES}
        else:
            settings[name] = value
    return settings


def _owners(parts: Sequence[_Part]) -> dict[str, _Part]:
    """Return the part that each file is taken from."""
    owner: dict[str, _Part] = {}
    for part in parts:
        twice = [name for name in part.files if name in owner]
        if twice:
            raise DiffLensError(
                f"{owner[twice[0]].path} and {part.path} overlap: both have {listing(twice)}. Parts of one "
                "store are extracted with --part 1 2, --part 2 2"
            )
        owner |= dict.fromkeys(part.files, part)
    layout = parts[0].manifest.layout
    needed = files_of(layout, layout.shards, parts[0].manifest.format)
    missing = [name for name in needed if name not in owner]
    if missing:
        folders = listing([part.path for part in parts])
        raise DiffLensError(
            f"{counted(len(missing), 'file')} {'is' if len(missing) == 1 else 'are'} in none of {folders}: "
            f"{listing(missing)}"
        )
    return owner
