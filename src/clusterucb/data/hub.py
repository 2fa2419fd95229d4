"""An index on the Hugging Face hub: a data set repository, fetched once into the hub's cache."""

from __future__ import annotations

from pathlib import Path

from clusterucb.data.files import HUB, is_hub
from clusterucb.errors import InputError, reason


def index_folder(index: str) -> Path:
    """The folder of an index that is named by its path or as `hub:org/name`.

    Raises:
        InputError: the hub has no such data set, or cannot be reached.
    """
    if not is_hub(index):
        return Path(index)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(index.removeprefix(HUB), repo_type="dataset"))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(
            f"{index}: the index cannot be fetched ({type(error).__name__}: {reason(error):.200}); check its "
            "name, and that the hub can be reached"
        ) from error
