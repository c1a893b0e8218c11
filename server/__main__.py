"""The entry point of the `texture-auth` command."""

from __future__ import annotations

from server.cli.root import root


def main() -> None:
    """Run the command line."""
    root(prog_name="texture-auth")


if __name__ == "__main__":
    main()
