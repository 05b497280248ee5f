"""The lock of weights: which commit an unpinned repository means, and the SHA-256 of every file that is loaded of one.

`star fetch` writes it and every run reads it. It belongs into git: with it two machines load the same bytes, whatever the
hub's branches have become. A revision in the configuration wins over the lock's commit. Folders are not locked: the keys of
what was made hold a digest of their weights.

A file is hashed when `star fetch` brings it. Beside the repository's snapshots in the hub's cache, CHECKED keeps the hash
with the file's size and its times of modification and of change, so that a run reads gigabytes again only where one of the
three is another.
"""

import fnmatch
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, IncompleteSnapshotError, LocalEntryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import WeakFileLock
from huggingface_hub.utils.sha import git_hash
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from star.errors import InputError
from star.files import sha256 as digest
from star.files import write_text
from star.hub.check import TIMEOUT, Source, attempt, is_commit, is_repository, refusal

FILE = Path("config/weights.lock.json")  # of the folder that `star` runs in, as `resources` and `results` are
CHECKED = "star-checked.json"
_FETCH = "`star fetch --config ...`"
_TEXTS = ("*.json", "*.txt", "*.model", "*.jinja")  # configurations, vocabularies, chat templates
_MODEL = ("model.safetensors", "model-*.safetensors")  # as transformers names them
_DIFFUSION = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model-*.safetensors")  # as diffusers does

Commit = Annotated[str, Field(pattern="^[0-9a-f]{40}$")]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Lock(BaseModel):
    """The content of the file: repository -> commit, and repository@commit -> file -> SHA-256."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    commits: dict[str, Commit] = {}
    files: dict[str, dict[str, Sha256]] = {}


def read() -> Lock:
    """The lock; an empty one where there is no file. Raises InputError when the file is something else."""
    if not FILE.exists():
        return Lock()
    try:
        return Lock.model_validate_json(FILE.read_text(encoding="utf-8"))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"{FILE}: {where}: {first['msg']}; take it back from git, or remove it and run {_FETCH}") from None


def commit(name: str, revision: str | None, key: str = "revision") -> str:
    """The commit of a repository, owner/name: `revision` where the configuration pins one, else the lock's.

    Raises InputError, naming `key`, for a revision that is no commit, and for a repository that is neither pinned nor locked.
    """
    if revision is not None:
        if not is_commit(revision):
            raise InputError(
                f"{key}: {revision!r} of {name} can come to mean something else; give a commit (40 hex digits), or set it "
                f"to null and run {_FETCH}"
            )
        return revision
    if name not in (held := read().commits):
        raise InputError(f"{key}: {name} has no commit, neither here nor in {FILE}; run {_FETCH} once, with a network")
    return held[name]


def resolve(sources: Iterable[Source]) -> None:
    """Ask the hub for the commit of every unpinned repository that has none, and lock it.

    Nothing is asked twice: from then on the lock's commit stands. Raises InputError where the lock cannot be written, before
    anything is asked; for a revision that is no commit; and where the hub refuses or does not answer.
    """
    held = read().commits
    repositories = [source for source in sources if is_repository(source.name)]
    for source in repositories:
        if source.revision is not None:
            commit(source.name, source.revision, source.revision_key)
    absent = {source.name: source for source in repositories if source.revision is None and source.name not in held}
    if absent:
        check_writable()
        merge(Lock(commits={name: _todays_commit(source) for name, source in absent.items()}))


def _todays_commit(source: Source) -> str:
    """The commit of a repository's default branch. Raises InputError as `resolve`."""
    answered: list[str] = []
    error = attempt(lambda: answered.append(HfApi().model_info(source.name, timeout=TIMEOUT).sha))
    if error is None:
        return answered[0]
    if isinstance(error, HfHubHTTPError) and (refused := refusal(source.name, constants.DEFAULT_REVISION, error)):
        raise InputError(f"{source.key}: {source.name} {refused}")
    why = " ".join(str(error).split())[:200] or type(error).__name__
    raise InputError(
        f"{source.revision_key}: {source.name} has no commit in {FILE}, and {constants.ENDPOINT} does not tell it ({why}); "
        f"run {_FETCH} once with a network, or take {FILE} from where that was done"
    )


def check_writable() -> None:
    """Raise InputError when the lock cannot be written, before work is done for it."""
    with _alone():
        pass


@contextmanager
def _alone() -> Iterator[None]:
    """No other process changes the lock meanwhile."""
    try:
        FILE.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(FILE.with_name(f".{FILE.name}.lock")):
            yield
    except OSError as error:
        raise InputError(f"{FILE}: cannot be written ({error}); run where {FILE.parent} can be") from None


def merge(more: Lock) -> None:
    """Add to the lock what others have not written meanwhile; theirs stands. Raises InputError where files differ."""
    with _alone():
        held = read()
        commits, files = more.commits | held.commits, dict(held.files)
        for name, found in more.files.items():
            locked = files.get(name, {})
            for path in locked.keys() & found.keys():
                if locked[path] != found[path]:
                    raise InputError(f"{FILE}: {name} has another {path} than was fetched here; run {_FETCH} again")
            files[name] = dict(sorted((locked | found).items()))
        merged = Lock(commits=dict(sorted(commits.items())), files=dict(sorted(files.items())))
        if merged != held:
            write_text(FILE, merged.model_dump_json(indent=1) + "\n")


def patterns(parts: tuple[str, ...]) -> tuple[str, ...]:
    """The names of the files that are loaded of a source that is no pipeline."""
    return _TEXTS + _MODEL if "model" in parts else _TEXTS


def components(folder: Path) -> dict[str, str]:
    """The components of a pipeline's folder, each a folder in it, and the library whose class it is."""
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    return {name: entry[0] for name, entry in index.items() if isinstance(entry, list) and entry[0] is not None}


def loaded(folder: Path, parts: tuple[str, ...]) -> list[str]:
    """The files in a source's folder that are loaded, of those that are there, as paths in it."""
    if "pipeline" not in parts:
        wanted, places = patterns(parts), [folder]
    else:
        wanted = _TEXTS + _MODEL + _DIFFUSION
        places = [folder / name for name in components(folder)] if (folder / "model_index.json").is_file() else []
    inside = [file for place in places if place.is_dir() for file in place.iterdir() if file.is_file()]
    found = [file for file in inside if any(fnmatch.fnmatch(file.name, pattern) for pattern in wanted)]
    if "pipeline" in parts and places:
        found.append(folder / "model_index.json")
    return sorted(file.relative_to(folder).as_posix() for file in found)


def snapshot(name: str, at: str) -> Path | None:
    """The folder of the hub's cache with what it has of a repository at a commit, whole or not; None where it has nothing."""
    try:
        return Path(snapshot_download(name, revision=at, local_files_only=True))
    except IncompleteSnapshotError as error:  # of all files of the repository, most of which nobody needs
        return Path(error.snapshot_path)
    except LocalEntryNotFoundError:
        return None


def check(source: Source, at: str, under: str = "") -> None:
    """Compare what the hub's cache has of a repository at commit `at` with the lock; `under` names a folder in it.

    What is not in the cache, or was never locked, passes. Raises InputError, naming the file, when one differs.
    """
    locked, folder = read().files.get(f"{source.name}@{at}"), snapshot(source.name, at)
    if locked is None or folder is None:
        return
    checked = _checked(folder)
    for path in loaded(folder, source.parts):
        if path.startswith(under):
            *_, sha256 = _hashed(folder, path, checked)
            _compare(source, folder / path, sha256, locked.get(path))


def _compare(source: Source, file: Path, sha256: str, locked: str | None) -> None:
    if locked is None:
        raise InputError(f"{source.key}: {FILE} does not have {file}; run {_FETCH}, which adds it or says why not")
    if sha256 != locked:
        raise InputError(
            f"{source.key}: {file} is not the file that {FILE} holds (SHA-256 {sha256[:12]}, locked {locked[:12]}); "
            f"remove {file.resolve()} and run {_FETCH} again"
        )


def record(source: Source, folder: Path, online: bool) -> None:
    """Lock what was fetched of a repository: `folder` is its snapshot in the hub's cache, named by its commit.

    Files that are new to the lock must be those that the hub lists, if it is `online`. Raises InputError, naming the file,
    when one is not what the hub lists, or not what the lock holds.
    """
    name = f"{source.name}@{folder.name}"
    locked, checked = read().files.get(name, {}), _checked(folder)
    hashed = {path: _hashed(folder, path, checked) for path in loaded(folder, source.parts)}
    new = hashed.keys() - locked.keys()
    listed = _listed(source.name, folder.name) if new and online else None
    for path, (*_, sha256) in hashed.items():
        if path in locked:
            _compare(source, folder / path, sha256, locked[path])
        elif listed is not None and not _is_listed(folder / path, sha256, listed.get(path)):
            raise InputError(
                f"{source.key}: {folder / path} is not the file that the hub has; remove {(folder / path).resolve()} and run "
                f"{_FETCH} again"
            )
    if new:
        merge(Lock(files={name: {path: sha256 for path, (*_, sha256) in hashed.items()}}))
    if not hashed.items() <= checked.items() and os.access(folder.parents[1], os.W_OK):  # a shared cache may not be ours
        _remember(folder, hashed)


def _listed(name: str, at: str) -> dict[str, str]:
    """What the hub says of a repository's files: the SHA-256 of large ones, git's hash of the others."""
    entries = HfApi().list_repo_tree(name, recursive=True, revision=at)
    files = [entry for entry in entries if isinstance(entry, RepoFile)]
    return {file.path: file.lfs.sha256 if file.lfs else file.blob_id for file in files}


def _is_listed(file: Path, sha256: str, listed: str | None) -> bool:
    return listed == (sha256 if listed is not None and len(listed) == 64 else git_hash(file.read_bytes()))


def _stamp(file: Path) -> list[int]:
    """What changes with a file's content: size, time of modification, time of change (which no program can set back)."""
    status = file.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _hashed(folder: Path, path: str, checked: dict[str, list]) -> list:
    """A file's stamp and then its SHA-256, which `checked` may know."""
    stamp, known = _stamp(folder / path), checked.get(path, [])
    if known[:-1] == stamp:
        return known
    return [*stamp, digest(folder / path)]


def _checked(folder: Path) -> dict[str, list]:
    """What `star fetch` has hashed of a snapshot: file -> its stamp and SHA-256."""
    return _all_checked(folder).get(folder.name, {})


def _all_checked(folder: Path) -> dict[str, dict[str, list]]:
    file = folder.parents[1] / CHECKED
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _remember(folder: Path, hashed: dict[str, list]) -> None:
    """Keep hashes for later runs; what another `star fetch` writes meanwhile may be lost and is then hashed again."""
    whole = _all_checked(folder)
    whole[folder.name] = whole.get(folder.name, {}) | hashed
    write_text(folder.parents[1] / CHECKED, json.dumps(whole, indent=1))
