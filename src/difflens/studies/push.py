"""`difflens push`: uploads a trained model to the Hugging Face hub."""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from difflens.configs.options import resolve
from difflens.configs.push import PushConfig
from difflens.errors import DiffLensError
from difflens.models.packing import pack
from difflens.results.push import PushResult
from difflens.run.reading import reason


def push(config: PushConfig) -> PushResult:
    """Pack a model with its card, and upload it.

    Raises:
        DiffLensError: the model cannot be read, its backbone lies on this machine and is not packed, the
            folder is not empty, or the hub refuses.
    """
    config = resolve(config)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if config.out is not None:
            folder = config.out
            if folder.exists():
                raise DiffLensError(f"{folder} exists: name another folder with --out")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            pack(config.model, folder, config.with_backbone)
            files = {
                path.relative_to(folder).as_posix(): path.stat().st_size
                for path in sorted(folder.rglob("*"))
                if path.is_file()
            }
            url = None if config.repo is None else _upload(folder, config.repo, config.private)
        except BaseException:
            if config.out is not None:
                shutil.rmtree(folder, ignore_errors=True)
            raise
    return PushResult(files=files, out=config.out, url=url)


def _upload(folder: Path, repo: str, private: bool) -> str:
    """Upload a folder to a repository of the hub, which is created; return the repository's address."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    hub = HfApi()
    try:
        url = hub.create_repo(repo, private=private or None, exist_ok=True)
        if private and not hub.repo_info(repo).private:  # the hub ignores the wish for one that exists
            raise DiffLensError(
                f"{repo} exists and is public: leave out --private, or name another repository"
            )
        hub.upload_folder(repo_id=repo, folder_path=folder, commit_message="Upload with difflens")
    except DiffLensError:
        raise
    except HfHubHTTPError as error:  # no token, no permission
        raise DiffLensError(
            f"the hub does not take {repo}: {reason(error)}; `hf auth login` stores a token that may write"
        ) from error
    except Exception as error:
        raise DiffLensError(f"{repo} was not uploaded: {reason(error)}") from error
    return str(url)
