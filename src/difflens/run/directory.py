"""Run directories: what a command was asked, how far it got, and what came out.

    config.yaml   the resolved configuration
    log.jsonl     one JSON object per epoch or logging interval
    checkpoints/  last.pt, from which --resume continues
    metrics.json  results
    model/        what `difflens predict` or diffusers loads
    report.html   for people

Every file is written under a temporary name and renamed, so a reader never sees half of one.
"""

import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator

from difflens.errors import DiffLensError
from difflens.run.files import replace_with

FINISHED = "metrics.json"


# seconds: decoding workers of a killed process outlive it for a moment, and hold its folder
_LOCK_ATTEMPTS = 6


class RunDirectory:
    """One command's output folder.

    Args:
        path: the folder; made if missing.
        command: the command's name, so that a folder of another command is not taken over.
        config: resolved configuration, plain values only.
        resume: continue what is there; None where the command knows no resuming. Without it a folder that holds
            anything is refused.
        process: of several processes all check and one writes; None: there is one.
        growing: a list in `config` that may have more entries than when the run was made; `grow` writes it down.
        changeable: options that a continuation may change.
        upgrade: brings the record of an earlier version to the names of today.

    Raises:
        DiffLensError: the folder holds another run, or the same command with another configuration, or another
            command is writing to it.
    """

    def __init__(
        self,
        path: Path,
        command: str,
        config: Mapping[str, Any],
        resume: bool | None = False,
        process: Accelerator | None = None,
        growing: str | None = None,
        changeable: Collection[str] = (),
        upgrade: Callable[[Mapping[str, Any]], dict[str, Any]] = dict,
    ):
        self.path = path
        self.main_process = process is None or process.is_main_process
        self._lock: int | None = None
        self.created = not path.exists()
        self.fresh = self.created or (path.is_dir() and all(map(_is_partial, path.iterdir())))
        stored = path / "config.yaml"
        self._record = record = {"command": command, **config}
        self._log_lines: int | None = None
        if path.exists() and not path.is_dir():
            raise DiffLensError(f"{path} is a file; the output must be a folder")
        hint = "choose another folder" if resume is None else "choose another folder or add --resume"
        if stored.exists():
            if not resume:
                raise DiffLensError(f"{path} already holds a run: {hint}")
            earlier = {k: v for k, v in upgrade(_read_record(stored)).items() if k not in changeable}
            _check_same(earlier, record, path, growing)
        elif not self.fresh:
            raise DiffLensError(f"{path} is not empty and holds no run of difflens: choose another folder")
        if process is not None:  # nobody writes before everybody has looked
            process.wait_for_everyone()
        if self.main_process:
            try:
                path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise DiffLensError(f"cannot make the folder {path}: {error.strerror}") from error
            self._lock = _lock(path)
            if self.fresh and stored.exists():  # made while we looked
                raise DiffLensError(f"{path} already holds a run: {hint}")
            if not stored.exists():
                self._write_config()
        if process is not None:  # nobody goes on before the folder is there
            process.wait_for_everyone()

    @contextmanager
    def working(self) -> Iterator[None]:
        """Where the run is done: afterwards the folder is free for other commands.

        An error that ends a run which began in a fresh folder, before its first checkpoint or `keep`, leaves nothing
        behind.
        """
        try:
            yield
        except Exception:
            if self.main_process and self.fresh and not any(self.path.rglob(self.checkpoint_path.name)):
                if self.created:
                    shutil.rmtree(self.path, ignore_errors=True)
                else:
                    for child in self.path.iterdir():
                        shutil.rmtree(child) if child.is_dir() else child.unlink()
            raise
        finally:
            self.release()

    def grow(self) -> None:
        """Write down what `growing` has become, once nothing speaks against it."""
        self._write_config()

    def _write_config(self) -> None:
        self.write("config.yaml", yaml.safe_dump(self._record, sort_keys=False))

    def keep(self) -> None:
        """From here on an error leaves what is there, so that it can be resumed."""
        self.fresh = False

    def release(self) -> None:
        """Let other commands write to the folder; without effect the second time."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __del__(self) -> None:
        self.release()

    def write(self, name: str, text: str) -> Path:
        return self.write_with(name, lambda path: path.write_text(text))

    def write_json(self, name: str, value: object) -> Path:
        return self.write(name, json.dumps(value, indent=2) + "\n")

    def write_with(self, name: str, writer: Callable[[Path], object]) -> Path:
        """Let `writer` fill a temporary path, which then takes the name."""
        target = self.path / name
        if self.main_process:
            target.parent.mkdir(parents=True, exist_ok=True)
            replace_with(target, writer)
        return target

    def write_folder(self, name: str, writer: Callable[[Path], object]) -> Path:
        """As `write_with`, for a whole folder."""
        target = self.path / name
        if self.main_process:
            temporary = target.with_name(f".{target.name}.partial")
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            writer(temporary)
            shutil.rmtree(target, ignore_errors=True)
            temporary.replace(target)
        return target

    def log(self, record: Mapping[str, Any]) -> None:
        if self.main_process:
            lines = self._lines_logged()
            with (self.path / "log.jsonl").open("a") as file:
                file.write(json.dumps(record) + "\n")
            self._log_lines = lines + 1

    def _lines_logged(self) -> int:
        if self._log_lines is None:
            self._log_lines = len(self.read_log())
        return self._log_lines

    def read_log(self) -> list[dict[str, Any]]:
        return read_log(self.path)

    @property
    def checkpoint_path(self) -> Path:
        return self.path / "checkpoints" / "last.pt"

    def save_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Save tensors and plain values; the log's length goes with them, so that resuming repeats no line."""
        if self.main_process:
            record = {**state, "log_lines": self._lines_logged()}
            if record["log_lines"]:  # a checkpoint must not get to the disk before the log that it counts
                with (self.path / "log.jsonl").open("a") as file:
                    os.fsync(file.fileno())
            self.write_with("checkpoints/last.pt", lambda path: torch.save(record, path))

    def load_checkpoint(self) -> dict[str, Any] | None:
        """The last checkpoint, or None; the log is cut back to where it was then."""
        if not self.checkpoint_path.exists():
            if self.main_process and (self.path / "log.jsonl").exists():
                self.write("log.jsonl", "")
            self._log_lines = None
            return None
        try:
            state: dict[str, Any] = torch.load(self.checkpoint_path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds for a damaged file
            raise DiffLensError(
                f"the checkpoint {self.checkpoint_path} is damaged: start again in another folder"
            ) from error
        kept = self.read_log()[: state.pop("log_lines")]
        self.write("log.jsonl", "".join(json.dumps(line) + "\n" for line in kept))
        self._log_lines = None
        return state

    def read_json(self, name: str) -> dict[str, Any]:
        try:
            return dict(json.loads((self.path / name).read_text()))
        except (ValueError, OSError) as error:
            raise DiffLensError(f"{self.path / name} cannot be read: {error}") from error

    @property
    def finished(self) -> bool:
        return (self.path / FINISHED).exists()


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, ValueError) as error:
        raise DiffLensError(f"{path} is not a run's configuration: it is damaged") from error
    if not isinstance(record, dict):
        raise DiffLensError(f"{path} is not a run's configuration")
    return record


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The records of a run directory's log.jsonl; the last line may be half written."""
    path = folder / "log.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def _is_partial(path: Path) -> bool:
    """Is this what a killed process left of a file that it was writing?"""
    return path.name.startswith(".") and ".partial" in path.name


def _lock(path: Path) -> int | None:
    """Hold the folder for this process, to its end if it is killed; None where the system has no such locks."""
    try:
        import fcntl
    except ImportError:
        return None
    handle = os.open(path, os.O_RDONLY)
    for _ in range(_LOCK_ATTEMPTS):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                os.close(handle)
                return None
            time.sleep(1)
        else:
            return handle
    os.close(handle)
    raise DiffLensError(f"another process is writing to {path}: choose another folder")


def _check_same(stored: Mapping[str, Any], asked: Mapping[str, Any], path: Path, growing: str | None) -> None:
    asked = json.loads(json.dumps(asked))
    different = [
        f"{key} was {stored.get(key)!r}, now {asked.get(key)!r}"
        for key in {**stored, **asked}
        if not _same(stored.get(key), asked.get(key))
        and not (key == growing and {*(stored.get(key) or ())} <= {*asked[key]})
    ]
    if different:
        raise DiffLensError(f"{path} holds another run: {'; '.join(different)}. Choose another folder")


def _same(stored: object, asked: object) -> bool:
    """Equal, or two spellings of the same file or folder, after the same prefix as in idx:FOLDER."""
    if stored == asked or not (isinstance(stored, str) and isinstance(asked, str)):
        return stored == asked
    (kind, _, there), (asked_kind, _, here) = stored.rpartition(":"), asked.rpartition(":")
    try:
        return kind == asked_kind and Path(there).expanduser().samefile(Path(here).expanduser())
    except OSError:
        return False
