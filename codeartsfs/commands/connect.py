"""From options to a session: which API, as whom, with which cache."""

import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click

from codeartsfs.commands import exits
from codeartsfs.config import SessionConfig, default_cache_dir

if TYPE_CHECKING:
    from codeartsfs.api.auth import Credentials
    from codeartsfs.names import LogLevel
    from codeartsfs.selection import Selection
    from codeartsfs.session import Session


# What api/auth.py looks for, in this order, and what it is for.
CREDENTIAL_VARIABLES = {
    "CODEARTSFS_TOKEN": "a project-scoped IAM token",
    "CODEARTSFS_TOKEN_FILE": "a file with one, read again whenever it changes",
    "HUAWEICLOUD_SDK_AK": "an access key (also CLOUD_SDK_AK)",
    "HUAWEICLOUD_SDK_SK": "and its secret key (also CLOUD_SDK_SK)",
    "HUAWEICLOUD_SDK_PROJECT_ID": "the project of the access key, where it needs one",
    "HUAWEICLOUD_SDK_SECURITY_TOKEN": "the security token of a temporary access key",
    "CODEARTSFS_USER": "an IAM user",
    "CODEARTSFS_PASSWORD": "his password",
    "CODEARTSFS_PASSWORD_FILE": "a file with it",
    "CODEARTSFS_ACCOUNT": "his account",
    "CODEARTSFS_IAM_PROJECT": "the IAM project he asks a token for, instead of the region's",
    "CODEARTSFS_IAM_ENDPOINT": "IAM's address (also HUAWEICLOUD_SDK_IAM_ENDPOINT)",
    "CREDENTIALS_DIRECTORY": "systemd's: files named token, ak, sk, user, password, account, ...",
    "HUAWEICLOUD_SDK_CREDENTIALS_FILE": "a profile instead of ~/.huaweicloud/credentials",
}


def session_config(settings: Mapping[str, Any]) -> "tuple[SessionConfig, Credentials]":
    """Make a session of the values of ``api_options`` and ``cache_options``.

    Ends the command, in one line, where no API is chosen or there are no credentials.
    """
    from codeartsfs.api.auth import CredentialsError

    address = api_address(settings)
    try:
        credentials = credentials_for(address, settings)
    except CredentialsError as error:
        exits.refuse(str(error), exits.CREDENTIALS)
    config = SessionConfig(
        endpoint=address,
        ca_file=settings["ca_file"],
        projects=tuple(dict.fromkeys(settings["project"])),
        builds_per_job=settings["builds_per_job"],
        max_downloads=settings["max_downloads"],
        max_requests_per_second=settings["max_requests_per_second"],
        cache_dir=cache_directory(settings["cache_dir"]),
        cache_size_bytes=settings["cache_size"],
        memory_cache_bytes=settings["memory_cache"],
        refresh_s=settings["refresh"],
        settle_s=settings["settle"],
    )
    return config, credentials


def use_session(
    settings: Mapping[str, Any], task: "Callable[[Session, Selection], Awaitable[None]]"
) -> None:
    """Run a task that needs no mount: with a session, and what finds things by their names.

    Sets up the log as well, by the values of ``logging_options``. Ends the command where there
    can be no session, and at Ctrl-C.
    """
    from codeartsfs.diagnostics import set_up_logging
    from codeartsfs.fs.mountpoint import mounts
    from codeartsfs.selection import Selection
    from codeartsfs.session import open_session, prepare_process

    set_up_logging(settings["log_level"], settings["log_format"], settings["log_file"])
    config, credentials = session_config(settings)
    prepare_process()
    try:
        here = Path.cwd()
    except OSError:  # it was removed
        here = Path("/")

    async def run() -> None:
        async with open_session(config, credentials, keeps_running=True) as session:
            await task(session, Selection(session, mounts(), here))

    try:
        run_session(run)
    except KeyboardInterrupt:
        sys.exit(exits.INTERRUPTED)


def run_session(task: Callable[..., Awaitable[None]], *arguments: object) -> None:
    """Run an event loop for a task that opens a session; end the command where that cannot be.

    Nurseries group what they raise; of a failed start there is only one thing to say.
    """
    import trio

    from codeartsfs.api.endpoints import EndpointError
    from codeartsfs.logs.disk import CacheDirectoryError

    try:
        try:
            trio.run(task, *arguments)
        except BaseExceptionGroup as group:
            raise exits.first(group) from group
    except (EndpointError, CacheDirectoryError) as error:
        exits.refuse(str(error), exits.USAGE)


def levels(chosen: str) -> "tuple[LogLevel, ...]":
    """Return what ``--level`` means."""
    from codeartsfs.names import LogLevel

    return tuple(LogLevel) if chosen == "all" else (LogLevel(chosen.upper()),)


def find_credentials(address: str, region: str | None) -> "Credentials | None":
    """Return what the environment has to show to this API, None for nothing.

    Raises:
        CredentialsError: what is there cannot be used.
    """
    from codeartsfs.api.auth import load_credentials
    from codeartsfs.api.endpoints import is_loopback

    return load_credentials(
        os.environ,
        Path.home(),
        region=region or "",
        # What listens on this machine is its own IAM: a password must not leave it.
        iam_endpoint=address if is_loopback(urlsplit(address).hostname or "") else "",
    )


def cache_directory(chosen: str | None) -> Path | None:
    """Return what ``--cache-dir`` means; None for no cache."""
    if chosen == "none":
        return None
    return Path(chosen).expanduser().absolute() if chosen else default_cache_dir()


def credentials_for(address: str, settings: Mapping[str, Any]) -> "Credentials":
    """Return who we are to an API.

    Raises:
        CredentialsError: nobody, or what is there cannot be used.
    """
    from codeartsfs.api.auth import CredentialsError

    credentials = find_credentials(address, settings["region"])
    if credentials is None:
        raise CredentialsError(
            "no credentials: set CODEARTSFS_TOKEN, CODEARTSFS_TOKEN_FILE, HUAWEICLOUD_SDK_AK and"
            " HUAWEICLOUD_SDK_SK, or CODEARTSFS_USER, CODEARTSFS_PASSWORD and CODEARTSFS_ACCOUNT"
        )
    return credentials


def api_address(settings: Mapping[str, Any]) -> str:
    """Return the address of the API that ``api_options`` choose.

    Raises:
        click.UsageError: none, two, or one that must not be used.
    """
    from codeartsfs.api.endpoints import EndpointError, check_endpoint, endpoint_for_region

    endpoint, region = settings["endpoint"], settings["region"]
    if endpoint and region:
        if _distance("endpoint") == _distance("region") == 0:
            raise click.UsageError("give --region or --endpoint, not both")
        if _distance("region") < _distance("endpoint"):
            endpoint = None
    if not endpoint and not region:
        raise click.UsageError("which API? give --region NAME or --endpoint URL")
    try:
        return check_endpoint(endpoint) if endpoint else endpoint_for_region(region or "")
    except EndpointError as error:
        raise click.UsageError(str(error)) from None


def _distance(name: str) -> int:
    """How far from the command line (0) an option was set: there, environment, file, default."""
    kinds = click.core.ParameterSource
    order = (kinds.COMMANDLINE, kinds.ENVIRONMENT, kinds.DEFAULT_MAP, kinds.DEFAULT)
    source = click.get_current_context().get_parameter_source(name)
    return order.index(source) if source in order else len(order)
