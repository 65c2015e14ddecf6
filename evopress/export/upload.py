"""Uploads checkpoints to the Hugging Face hub."""

import logging
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from evopress.export.registry import chosen_formats
from evopress.export.settings import Export

log = logging.getLogger(__name__)

WEIGHT_FILES = ["*.safetensors", "*.safetensors.index.json", "*.gguf"]
"""Files that an upload replaces as a set, because a part that is left from an earlier upload would be loaded too."""


def repository_of(settings: Export, format_name: str) -> str | None:
    """The repository for the checkpoint of a format, or None. With several formats, each has its own repository."""
    if settings.push_to_hub is None or len(chosen_formats(settings)) == 1:
        return settings.push_to_hub
    return f"{settings.push_to_hub}-{format_name}"


def check_upload(settings: Export) -> None:
    """Check what can be checked without a network.

    Raises:
        ValueError: There is nothing to upload, or a name that the hub does not allow.
    """
    if settings.push_to_hub is None:
        return
    if not settings.formats:
        raise ValueError("export.push_to_hub uploads what export.formats names, but that is empty: add a format")
    for checkpoint_format in chosen_formats(settings):
        name = repository_of(settings, checkpoint_format.name)
        try:
            validate_repo_id(name)
        except HFValidationError as error:
            raise ValueError(f"export.push_to_hub: the hub does not allow the name {name!r}: {error}") from error


def check_login(settings: Export) -> None:
    """Ask the hub whether the user may write to the repositories.

    Raises:
        ValueError: There is no token, the hub does not accept it or cannot be reached, or the token cannot write.
    """
    if settings.push_to_hub is None:
        return
    remedy = "run `hf auth login` or set HF_TOKEN, with a token that may write, or set export.push_to_hub=null"
    if get_token() is None:
        raise ValueError(f"export.push_to_hub is set, but nobody is logged in to the hub: {remedy}")
    try:
        account = HfApi().whoami()
    except Exception as error:  # the library raises errors of many types
        raise ValueError(f"export.push_to_hub: the hub does not accept the login ({error}): {remedy}") from error
    if account.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise ValueError(f"export.push_to_hub: the token of {account['name']} may only read: {remedy}")
    namespaces = [account["name"], *(organization["name"] for organization in account.get("orgs", []))]
    if settings.push_to_hub.partition("/")[0] not in namespaces:
        raise ValueError(
            f"export.push_to_hub is {settings.push_to_hub!r}, but {account['name']} can only write to "
            f"{' and '.join(namespaces)}: begin it with one of these"
        )


def upload_checkpoints(settings: Export, folder: Path) -> dict[str, str]:
    """Upload what `write_checkpoints` wrote to `folder`, each format as one commit. Earlier uploads are replaced.

    Returns:
        The address of each format's repository.

    Raises:
        OSError: An upload failed. The checkpoints stay where they are.
    """
    names = [checkpoint_format.name for checkpoint_format in chosen_formats(settings)]
    return {name: _upload(settings, repository_of(settings, name), folder / name) for name in names}


def _upload(settings: Export, repository: str | None, folder: Path) -> str:
    assert repository is not None
    api = HfApi()
    try:
        address = api.create_repo(repository, private=settings.private, exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            commit_message="Upload a checkpoint made by evopress",
            delete_patterns=WEIGHT_FILES,
        )
    except Exception as error:  # the library raises errors of many types
        raise OSError(
            f"{folder} is complete but could not be uploaded to {repository}: {error}. Resume the run to try again, or "
            f"upload it with `hf upload {repository} {folder}`"
        ) from error
    log.info("%s is uploaded: %s", folder, address)
    return str(address)
