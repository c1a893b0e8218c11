"""check: whether the service can be reached, trusts the caller and answers in time."""

from __future__ import annotations

import os

import click
from texture_auth.check import (
    DEFAULT_DEADLINE,
    DEFAULT_QUESTIONS,
    CredentialInvalid,
    Subject,
    read_caller_key,
    report,
)
from texture_auth.reach import Place

from server.cli.client import NOT_ADMITTED, Client, fail


@click.command()
@click.option(
    "--deadline",
    type=click.FloatRange(min=0, min_open=True),
    default=DEFAULT_DEADLINE,
    show_default=True,
    help="Seconds that your own calls leave for an answer.",
)
@click.option(
    "--questions",
    type=click.IntRange(min=1),
    default=DEFAULT_QUESTIONS,
    show_default=True,
    help="How many are asked to see how long answers take.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
@click.pass_context
def check(ctx: click.Context, deadline: float, questions: int, as_json: bool) -> None:
    """Say, step by step, whether the service can be reached, trusts the caller and answers in time.

    Changes nothing, and prints no key. `--timeout` is what each step may take.
    """
    client: Client = ctx.obj
    try:
        key = read_caller_key(os.environ, client.caller_key_file)
    except CredentialInvalid as error:
        fail(str(error), NOT_ADMITTED)
    place = Place(
        address=client.address,
        tls_ca=client.tls_ca,
        tls_certificate=None if client.identity is None else client.identity.certificate,
        tls_private_key=None if client.identity is None else client.identity.private_key,
        insecure_plaintext=client.insecure_plaintext,
        timeout=client.timeout,
    )
    ctx.exit(report(Subject(place=place, caller_key=key, deadline=deadline, questions=questions), as_json, click.echo))
