"""The command and its groups."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import click

from server.cli.client import EXIT_CODES, Client, Identity
from server.domain.token import holds_token

# In which module of this package each command is.
_MODULES = {
    **dict.fromkeys(("serve", "migrate", "bootstrap"), "operate"),
    **dict.fromkeys(("doctor", "backup", "restore"), "maintain"),
    **{
        name: name
        for name in (
            *("callers", "workspaces", "keys", "links", "devices", "authorize", "webhooks", "incident", "audit"),
            "check",
        )
    },
}


class _Commands(click.Group):
    """The commands, each imported when it is asked for: a caller's need nothing of the server, which takes longer."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return sorted(_MODULES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        if cmd_name not in _MODULES:
            return None
        command: click.Command = getattr(import_module(f"server.cli.{_MODULES[cmd_name]}"), cmd_name)
        return command


@click.group(
    cls=_Commands, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.option(
    "--address",
    envvar="TEXTURE_AUTH_ADDRESS",
    default="127.0.0.1:50051",
    show_default=True,
    show_envvar=True,
    help="HOST:PORT of the service.",
)
@click.option(
    "--caller-key-file",
    envvar="TEXTURE_AUTH_CALLER_KEY_FILE",
    type=click.Path(path_type=Path),
    show_envvar=True,
    help="A file with the svc key to call with; or give the key itself in TEXTURE_AUTH_CALLER_KEY.",
)
@click.option(
    "--tls-ca",
    envvar="TEXTURE_AUTH_TLS_CA",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    show_envvar=True,
    help="Trust this certificate authority (PEM) and no other.",
)
@click.option(
    "--tls-certificate",
    envvar="TEXTURE_AUTH_CLIENT_CERTIFICATE",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    show_envvar=True,
    help="Present this client certificate (PEM); a caller's key is then not needed.",
)
@click.option(
    "--tls-private-key",
    envvar="TEXTURE_AUTH_CLIENT_PRIVATE_KEY",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    show_envvar=True,
    help="The private key of the client certificate (PEM).",
)
@click.option(
    "--insecure-plaintext",
    is_flag=True,
    envvar="TEXTURE_AUTH_CLIENT_PLAINTEXT",
    help="Call without TLS. Needs not be said for loopback.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0.001),
    default=10.0,
    show_default=True,
    help="Seconds to wait for an answer.",
)
@click.version_option(package_name="texture-auth")
@click.pass_context
def root(
    ctx: click.Context,
    address: str,
    caller_key_file: Path | None,
    tls_ca: Path | None,
    tls_certificate: Path | None,
    tls_private_key: Path | None,
    insecure_plaintext: bool,
    timeout: float,
) -> None:
    """Texture Auth: may the holder of this API key act on this device?

    `serve`, `migrate`, `bootstrap`, `doctor`, `backup` and `restore` work on the server's own settings; every other
    command calls a running service over gRPC, as any caller would. Keys and tokens are read from standard input or a
    prompt, never from the arguments.
    """
    if any(holds_token(argument) for argument in sys.argv[1:]):
        raise click.UsageError(
            "a key or token stands in the arguments, where others on this machine can read it: give it on standard "
            "input, and have this one revoked"
        )
    if (tls_certificate is None) != (tls_private_key is None):
        raise click.UsageError("--tls-certificate and --tls-private-key go together")
    identity = None
    if tls_certificate is not None and tls_private_key is not None:
        identity = Identity(tls_certificate, tls_private_key)
    ctx.obj = Client(address, caller_key_file, tls_ca, identity, insecure_plaintext, timeout)
