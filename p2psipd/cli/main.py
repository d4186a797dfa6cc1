"""The `p2psip` command: names of the verbs and where each is written. A verb's module is imported when it is
used.

Neither Twisted nor `p2psipd.app` is imported here: verbs that ask a running node speak HTTP over its control
socket, and verbs that are nodes themselves start a reactor inside the verb.
"""

from __future__ import annotations

import errno
import importlib
from typing import Any, NamedTuple

import click

from p2psipd import __version__
from p2psipd.cli.console import Negative


class Verb(NamedTuple):
    """Where a verb is written, under which name there, and what it is for in one line."""

    module: str
    attribute: str
    help: str


_NODE = "p2psipd.cli.node"
_OVERLAY = "p2psipd.cli.overlay"

VERBS = {
    "status": Verb(_NODE, "status", "How the node is: who, where, how long, what is wrong."),
    "peers": Verb(_NODE, "peers", "The peers it has links with, with round-trip times."),
    "ping": Verb(_NODE, "ping", "Ask a node through the overlay whether it is there."),
    "get": Verb(_NODE, "get", "Fetch and verify what the overlay holds under a name."),
    "trace": Verb(_NODE, "trace", "The way to a name through the overlay, hop by hop."),
    "records": Verb(_NODE, "records", "What this node stores for the overlay."),
    "registrations": Verb(_NODE, "registrations", "The phones that registered here."),
    "calls": Verb(_NODE, "calls", "The calls that this node carries."),
    "check": Verb(_NODE, "check", "Check a configuration file: all faults at once."),
    "overlay": Verb(_OVERLAY, "overlay", "Make and sign the overlay's configuration document."),
    "ca": Verb(_OVERLAY, "ca", "The overlay's certificate authority: enroll peers and users."),
    "user": Verb("p2psipd.cli.user", "user", "Passwords of phones: add, change and remove users."),
    "peering": Verb("p2psipd.cli.peering", "peering", "Direct peering: what to publish, whom one can reach."),
    "number": Verb("p2psipd.cli.number", "number", "Telephone numbers: which user each stands for."),
    "ua": Verb("p2psipd.cli.ua", "ua", "A small phone: register, call, answer."),
    "sim": Verb("p2psipd.cli.sim", "sim", "Simulate a large overlay in virtual time."),
    "lab": Verb("p2psipd.cli.lab", "lab", "An overlay of real processes on this machine."),
    "demo-peering": Verb("p2psipd.cli.demo_peering", "demo_peering", "Two domains that peer, and calls between them."),
    "demo": Verb("p2psipd.cli.demo", "demo", "Start a lab, place a call through it, and show what happened."),
}


class LazyGroup(click.Group):
    """A group that imports the module of a verb when the verb is used, and lists the verbs without importing
    any.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The verbs, in the order of the table: what one needs first comes first."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The verb, or None if there is none of this name."""
        verb = VERBS.get(cmd_name)
        if verb is None:
            return None
        command = getattr(importlib.import_module(verb.module), verb.attribute)
        if not isinstance(command, click.Command):
            raise TypeError(f"{verb.module}.{verb.attribute} is no click command")
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb. A file that cannot be read or written ends it with one line, whichever it is."""
        try:
            return super().invoke(ctx)
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise
            raise Negative(f"{error.filename}: {error.strerror}" if error.filename else str(error)) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in `--help`, from the table alone."""
        with formatter.section("Verbs"):
            formatter.write_dl([(name, verb.help) for name, verb in VERBS.items()])


@click.group(
    name="p2psip",
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="p2psip")
@click.option(
    "-n",
    "--node",
    "node",
    envvar="P2PSIPD_CONTROL",
    metavar="PATH",
    help="The node to ask: its control socket, or its directory. Default: $P2PSIPD_CONTROL, "
    "else control.sock in this directory, else /run/p2psipd/control.sock.",
)
@click.pass_context
def main(ctx: click.Context, node: str | None) -> None:
    """Look into a p2psipd node, make overlays and users, and try things out.

    Every verb has --json. Exit codes: 0 ok, 1 the answer is no, 2 usage, 69 the node was not reached, 78 a
    configuration file is at fault.
    """
    ctx.obj = node


if __name__ == "__main__":
    main()
