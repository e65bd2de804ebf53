"""Fetching repositories of the hub into its cache, and saying what to do when that fails."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pegboard.errors import ConfigError, ModelError, PegboardError
from pegboard_hub.names import UNWANTED, WANTED


def download_model(name: str, revision: str | None = None) -> Path:
    """Return the folder of a model, having fetched what was not in the cache yet. revision: branch, tag or commit.

    Raises ModelError when the hub does not give the model, when it holds its weights only as pickles, and without a
    network when the cache lacks a part of it.
    """
    folder = _snapshot(name, "model", revision, WANTED, UNWANTED)
    if (folder / "config.json").is_file() and not any(folder.glob("*.safetensors")):
        raise _no_safetensors(name, revision)
    return folder


def download_dataset(name: str, revision: str | None = None, include: Sequence[str] = ()) -> Path:
    """Return the folder of a data set, having fetched its files, or only those that match a pattern of `include`.

    Raises ConfigError when no file matches, else as `download_model`.
    """
    folder = _snapshot(name, "dataset", revision, include or None, None)
    if include and not any(path.is_file() for path in folder.rglob("*")):
        raise ConfigError(
            f"no file of the data set {name} matches {', '.join(include)}", fix=f"see {_page('dataset', name)}"
        )
    return folder


def _snapshot(
    name: str, kind: str, revision: str | None, allow: Sequence[str] | None, ignore: Sequence[str] | None
) -> Path:
    from huggingface_hub import snapshot_download

    with _explained(name, kind, revision):
        return Path(
            snapshot_download(
                name,
                repo_type=kind,
                revision=revision,
                allow_patterns=None if allow is None else list(allow),
                ignore_patterns=None if ignore is None else list(ignore),
            )
        )


@contextmanager
def _explained(name: str, kind: str, revision: str | None) -> Iterator[None]:
    """Turn errors of huggingface_hub into ones that name the thing and the fix."""
    from huggingface_hub import errors

    what = f"the {'data set' if kind == 'dataset' else kind} {name}"
    page = _page(kind, name)
    try:
        yield
    except errors.HFValidationError as error:
        raise ModelError(
            f"{name!r} is neither a folder nor a hub id: {str(error).splitlines()[0]}",
            fix="a hub id looks like owner/name",
        ) from error
    except errors.GatedRepoError as error:
        raise ModelError(
            f"{what} is given only to those who accept its conditions",
            fix=f"accept them at {page}, then set HF_TOKEN to a token of yours (or run `hf auth login`)",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(
            f"the hub has no {kind} {name}, or it is private",
            fix=f"check the name at {page}; for a private one set HF_TOKEN (or run `hf auth login`)",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ModelError(f"{what} has no revision {revision!r}", fix=f"see {page} for its branches and tags") from error
    except errors.LocalEntryNotFoundError as error:
        raise _unreachable(name, kind, what, error) from error
    except errors.HfHubHTTPError as error:
        raise ModelError(
            f"the hub refuses {what}: {_line(error)}", fix="try again later; what is here already is not fetched twice"
        ) from error
    except OSError as error:
        if error.errno is not None and not isinstance(error, ConnectionError):  # the disk, not the network
            raise PegboardError(
                f"{what} cannot be stored in {_cache()}: {error.strerror}",
                fix="free some space, or set HF_HOME to a folder on another disk",
            ) from error
        raise _unreachable(name, kind, what, error) from error
    except Exception as error:
        # The HTTP library beneath has changed over versions of huggingface_hub; its errors have no other base in common.
        if not type(error).__module__.startswith(("httpx", "huggingface_hub", "hf_xet")):
            raise
        raise _unreachable(name, kind, what, error) from error


def _unreachable(name: str, kind: str, what: str, error: Exception) -> ModelError:
    from huggingface_hub import constants

    command = f"peg download {'--dataset ' if kind == 'dataset' else ''}{name}"
    if constants.HF_HUB_OFFLINE:
        return ModelError(
            f"{what} is not, or not wholly, in {_cache()}, and HF_HUB_OFFLINE keeps it from being fetched",
            fix=f"run `HF_HUB_OFFLINE=0 {command}` once, or copy that folder from a machine that has it",
        )
    cause = error.__cause__ or error
    return ModelError(
        f"{what} is not, or not wholly, in {_cache()}, and {constants.ENDPOINT} cannot be reached ({_line(cause)})",
        fix=f"with a network run `{command}` (a part that is here is not fetched twice), then copy {_cache()} here; "
        "or name a local folder or file",
    )


def _no_safetensors(name: str, revision: str | None) -> ModelError:
    """Say which weights there are instead, if the hub tells."""
    from huggingface_hub import HfApi

    try:
        names = HfApi().list_repo_files(name, revision=revision)
    except Exception:  # only a hint is lost
        names = []
    pickles = [found for found in names if found.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    ggufs = [found for found in names if found.endswith(".gguf")]
    if pickles:
        return ModelError(
            f"{name} holds its weights only as {pickles[0]}, a pickle, which can run code when it is read",
            fix="use a revision with .safetensors files (the hub's conversions are pull requests: --revision refs/pr/N), "
            "or convert it with transformers: AutoModelForCausalLM.from_pretrained(…).save_pretrained(…)",
        )
    if ggufs:
        return ModelError(f"{name} holds only GGUF files", fix=f"download {ggufs[0]} and name that file")
    return ModelError(f"{name} holds no .safetensors files", fix=f"see {_page('model', name)} for what it is")


def _page(kind: str, name: str) -> str:
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{name}"


def _cache() -> str:
    from huggingface_hub import constants

    return str(constants.HF_HUB_CACHE)


def _line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
