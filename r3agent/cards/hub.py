"""Upload of an exported version to the Hugging Face Hub, private unless asked otherwise.

The token is read from `HF_TOKEN` alone, and is in no record, log or message.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from r3agent._util.checked import checked
from r3agent._util.imports import require_extra
from r3agent.errors import ConfigError, HubError, R3Error

if TYPE_CHECKING:
    from huggingface_hub import HfApi

TOKEN, ENDPOINT = "HF_TOKEN", "HF_ENDPOINT"
REMEDIES = {
    401: f"the Hub does not know this {TOKEN}; make one that may write at https://huggingface.co/settings/tokens",
    403: f"this {TOKEN} may not write there; take one that may, or a repository of your own",
    404: "there is no such repository; without --update it is made",
    409: "it exists already; name another, or add a commit to it with --update",
    412: "it was changed meanwhile; the same command with --update goes on",
}
"""Remedies by HTTP status."""


class HubRepository:
    """Model repository on the Hub that a version is uploaded to; it is checked at once, and made with the upload.

    Args:
        repo: `organisation/name`.
        public: everybody may read it.
        update: add a commit to a repository that exists, which replaces its files; default: make it.

    Raises:
        ConfigError: `HF_TOKEN` is missing, `repo` is no name, or it is public without `public`.
        HubError: the Hub does not know the token, or has such a repository already, or has none to update.
    """

    @checked
    def __init__(self, repo: str, *, public: bool = False, update: bool = False) -> None:
        self.repo, self.public, self.update = repo, public, update
        self.url = ""
        self._token = os.environ.get(TOKEN, "").strip()
        if not self._token:
            raise ConfigError(f"--push {repo}: {TOKEN} is not set; set it to a token of the Hub that may write")
        require_extra("huggingface_hub", "train")
        from huggingface_hub.utils import HFValidationError, validate_repo_id

        try:
            validate_repo_id(repo)
        except HFValidationError as error:
            raise ConfigError(f"--push {repo!r}: {error}; name organisation/name") from None
        with self._errors("cannot be used") as api:
            api.whoami()  # a repository that a token may not read is as one that is missing
            if update and not (public or api.repo_info(repo, repo_type="model").private):
                raise ConfigError(f"{repo} is public; add --public if everybody may read this version")
            if not update and api.repo_exists(repo, repo_type="model"):
                raise HubError(f"{repo} cannot be used: {REMEDIES[409]}")

    @checked
    def upload(self, directory: str | Path, message: str) -> str:
        """Make the repository, upload the files of a directory in one commit, and return its URL.

        Raises:
            HubError: the Hub refuses, or the upload broke off; nothing was committed.
        """
        if not self.update:
            with self._errors("cannot be used") as api:
                api.create_repo(self.repo, private=not self.public, repo_type="model")
        with self._errors("has none of the files: the upload broke off; --update uploads to it") as api:
            commit = api.upload_folder(
                repo_id=self.repo,
                folder_path=str(directory),
                commit_message=message,
                delete_patterns="*" if self.update else None,
            )
        return str(commit.commit_url)

    @contextmanager
    def _errors(self, what: str) -> Generator[HfApi]:
        """Yield the client; turn what it raises into an error without the token and with a remedy."""
        from huggingface_hub import HfApi
        from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

        quiet = are_progress_bars_disabled()
        disable_progress_bars()
        try:
            yield HfApi(endpoint=os.environ.get(ENDPOINT) or None, token=self._token, library_name="r3agent")
        except R3Error:
            raise
        except Exception as error:  # those of its HTTP client and of its uploads have no common base class
            status = getattr(getattr(error, "response", None), "status_code", None)
            remedy = REMEDIES.get(status or 0, "is the Hub reachable from here? Try again later")
            text = " ".join(f"{type(error).__name__}: {error}".split()).replace(self._token, "***")
            raise HubError(f"{self.repo} {what}: {f'HTTP {status}: ' if status else ''}{remedy} ({text})") from None
        finally:
            if not quiet:
                enable_progress_bars()
