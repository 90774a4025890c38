"""What a model path names: a folder here, or a model on the Hugging Face hub."""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from ostlight.errors import ModelError
from ostlight.suggest import nearest_path

log = logging.getLogger(__name__)

TIMEOUT_S = 10.0
"""Longest wait for the hub's answer; the libraries that load a model would try again for half a minute."""


def setting_of(where: str) -> str:
    """Returns the setting that holds the path: ``proxy.path`` for ``proxy``, an option of a selector as it is."""
    return where if "." in where else f"{where}.path"


@cache
def check_model_path(path: str, setting: str, named_by: str | None = None) -> None:
    """Checks, before anything is loaded, that a path is a folder or a hub name that can be had; says what is tried.

    Args:
        path: folder or hub name.
        setting: that holds it, for messages.
        named_by: the file that names it, where that is not the configuration.

    Raises:
        ModelError: no such folder, and no name the hub can have, or none it has, or a hub that does not answer.
    """
    if Path(path).is_dir():
        return
    led = setting if named_by is None else f"{setting}: the base model that {named_by} names"
    missing = f"{led}: no folder {path!r} here (looked in {Path.cwd()})"
    if Path(path).exists():
        raise ModelError(f"{led}: {path!r} is a file; name the folder that holds the model", setting)
    try:
        validate_repo_id(path)
    except HFValidationError as error:
        raise ModelError(f"{missing}, and no hub name, which is written OWNER/NAME; {_fix(path)}", setting) from error
    is_cached = isinstance(try_to_load_from_cache(path, "config.json"), str)
    if is_cached or constants.HF_HUB_OFFLINE:
        if is_cached:
            log.info(f"{missing}; taking the hub's model of that name, which is in the cache")
            return
        raise ModelError(f"{missing}, none in the hub's cache, and HF_HUB_OFFLINE is set; {_fix(path)}", setting)
    log.info(f"{missing}; asking {constants.ENDPOINT}")
    try:
        get_hf_file_metadata(hf_hub_url(path, "config.json"), timeout=TIMEOUT_S)
    except GatedRepoError:
        return  # a kind of RepositoryNotFoundError
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"{missing}, and no model of that name on {constants.ENDPOINT} that is public or yours; {_fix(path)}",
            setting,
        ) from error
    except HfHubHTTPError:
        return  # it answers: why it gives no file, the library that loads the model says best
    except Exception as error:  # of the HTTP library, which differs between versions of huggingface_hub
        problem = (
            f"{missing}, and {constants.ENDPOINT} does not answer ({error}); {_fix(path)}, or connect this machine"
        )
        raise ModelError(problem, setting) from error


def _fix(path: str) -> str:
    """Returns what to do about a folder that is missing, with the nearest one beside it."""
    near = nearest_path(Path(path), folders=True)
    return f"did you mean {str(near)!r}?" if near else "correct the path"
