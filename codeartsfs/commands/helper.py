"""``mount.fuse.codeartsfs``: what mount(8) calls for a line of fstab(5)."""

import os
import re
import sys
from pathlib import Path
from typing import NoReturn

import click

from codeartsfs.commands import exits
from codeartsfs.commands.mount import mount
from codeartsfs.commands.options import settable
from codeartsfs.config import did_you_mean, is_secret, mount_options

NAME = "mount.fuse.codeartsfs"

# Of mount(8), not of ours.
WRONG_CALL = 1
MOUNT_FAILED = 32

_ONE_OPTION = re.compile(r'(?:"[^"]*"|[^,])+')  # commas in quotes belong to the value
_LOGIN = re.compile("(env[.].*=[^/]*:|://)[^/]*@")  # a proxy needs no scheme
# Secrets stay in files; an fstab names these.
_FILES = {
    "token_file": "CODEARTSFS_TOKEN_FILE",
    "password_file": "CODEARTSFS_PASSWORD_FILE",
    "credentials_file": "HUAWEICLOUD_SDK_CREDENTIALS_FILE",
}


@click.command(NAME, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("source")
@click.argument("mountpoint", metavar="DIR")
@click.option(
    "-o", "options", multiple=True, metavar="OPT[,OPT...]", help="Settings and mount options."
)
@click.option("-f", "fake", is_flag=True, help="Check the options, mount nothing.")
@click.option("-s", "sloppy", is_flag=True, help="Ignore mount options that are not known.")
@click.option("-v", "verbose", is_flag=True, help="Say what is mounted.")
@click.option("-n", "no_mtab", is_flag=True, help="Ignored, like mtab.")
@click.option("-t", "kind", metavar="TYPE", help="Ignored: there is one type.")
def helper(
    source: str,
    mountpoint: str,
    options: tuple[str, ...],
    fake: bool,
    sloppy: bool,
    verbose: bool,
    no_mtab: bool,
    kind: str | None,
) -> None:
    """Mount the build logs of SOURCE at DIR, called by mount(8); return when the mount answers.

    SOURCE is a region (cn-north-4 or codearts:cn-north-4), the URL of an endpoint, or just
    codearts, where files or the environment say which.

    Options are the settings of codeartsfs mount (cache_size=8G, project=ID, config=FILE; dashes
    or underscores; quotes around a value with commas), its mount options (allow_other, uid=1000),
    what mount(8) and systemd have (_netdev, nofail, x-systemd.automount), token_file=,
    password_file=, credentials_file=, and env.NAME=VALUE for a variable that is no secret.

    Exit codes: 0 mounted, 1 wrong call or options, 32 mount failed.
    """
    arguments, environment = _translate(source, options, sloppy)
    os.environ.update(environment)
    _complete_environment()
    with mount.make_context(NAME, [mountpoint, "--daemon", *arguments]) as ctx:
        if not fake:
            _mount(ctx)
    if verbose:
        click.echo(f"{NAME}: {source} {'would be ' * fake}mounted on {mountpoint}")


def _translate(
    source: str, options: tuple[str, ...], sloppy: bool
) -> tuple[list[str], dict[str, str]]:
    """Return what an fstab says as arguments of ``codeartsfs mount`` and variables for it."""
    settings = {str(option.name): option.opts[0] for option in settable()} | {"config": "--config"}
    del settings["options"]
    arguments, environment = [], {}
    # The source as it was given: by that, mount(8) knows what is mounted already.
    kernel = [f"fsname={source}"]
    api = source.removeprefix("codearts:")
    if _LOGIN.search(api):
        raise _exposed("the source")
    if api not in ("codearts", "none"):
        arguments += ["--endpoint" if "://" in api else "--region", api]
    for word in _ONE_OPTION.findall(",".join(options)):
        name, _, value = word.replace('"', "").partition("=")
        setting = name.replace("-", "_")
        variable = _FILES.get(setting) or name.removeprefix("env.")
        if is_secret(setting) or _LOGIN.search(word):
            raise _exposed(name)
        if name == "remount":
            raise click.UsageError("what is mounted cannot be changed: umount it, mount it again")
        if setting in settings:
            arguments += [settings[setting], value]
        elif variable != name:
            if not (value and variable.isidentifier()):
                raise click.UsageError(f"{name} needs a value: {name}=...")
            environment[variable] = value
        elif name == "rw":
            pass  # said by mount(8) wherever ro is not
        else:
            try:
                mount_options(word)
            except click.BadParameter:
                if sloppy:
                    continue
                if advice := did_you_mean(setting, [*settings, *_FILES]):
                    raise click.UsageError(f"unknown option {name!r}{advice}") from None
                raise
            kernel.append(word)
    return [*arguments, "-o", ",".join(kernel)], environment


def _exposed(name: str) -> click.UsageError:
    return click.UsageError(
        f"{name}: everybody can read an fstab and the arguments of programs; write the"
        " secret to a file of mode 0600 and give token_file=, password_file= or"
        " credentials_file="
    )


def _complete_environment() -> None:
    """Add what a service manager that mounts at boot leaves out."""
    os.environ.setdefault("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
    if not os.environ.get("HOME"):
        os.environ.pop("HOME", None)  # an empty one would be taken for the root directory
        os.environ["HOME"] = os.fspath(Path.home())


def _mount(ctx: click.Context) -> None:
    """Mount in a child: who goes to the background ends the process that it started in."""
    child = os.fork()
    if child == 0:
        try:
            mount.invoke(ctx)
        except click.ClickException as error:
            _refuse(error, exits.USAGE)
        sys.exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code:
        sys.exit(WRONG_CALL if code == exits.USAGE else MOUNT_FAILED)


def _refuse(error: click.ClickException, code: int) -> NoReturn:
    click.echo(f"{NAME}: {error.format_message()}", err=True)
    sys.exit(code)


def main() -> None:
    try:
        helper.main(prog_name=NAME, standalone_mode=False)
    except click.ClickException as error:
        _refuse(error, WRONG_CALL)
