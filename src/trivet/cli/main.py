"""The `trivet` command. A sub-command's module is imported only when it is the one that was typed."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from trivet import __version__
from trivet.cli.environment import check_environment, set_up_logging
from trivet.cli.usage import print_error
from trivet.errors import TrivetError

EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED = 0, 1, 130

EXAMPLE = """Try:  trivet run demo "def read_json(path):"
      trivet serve
"""

# name -> what the list of commands says; each has its own in its module's `command`
COMMANDS = {
    "run": "Generate text from a prompt, or chat.",
    "serve": "Serve a model through the OpenAI API.",
    "inspect": "Say what a checkpoint is and how it would load.",
    "bench": "Measure a server under load.",
    "doctor": "Measure this machine, say what would be chosen.",
    "cache": "List, clear and bound the packed weights.",
}


class Group(TyperGroup):
    """Its help opens with an example that works."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write(f"{EXAMPLE}\n")
        super().format_help(ctx, formatter)


def make_app(chosen: str | None) -> typer.Typer:
    """The application, with only the command `chosen` really imported."""
    app = typer.Typer(
        cls=Group, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False, no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"]},
    )  # fmt: skip
    app.callback()(_top)
    for name, text in COMMANDS.items():
        if name == chosen:
            module = importlib.import_module(f"trivet.cli.{name}")
            if isinstance(module.command, typer.Typer):
                for sub_command in module.command.registered_commands:
                    assert sub_command.callback is not None
                    sub_command.callback = _interruptible(sub_command.callback)
                app.add_typer(module.command, name=name, help=text)
            else:
                app.command(name)(_interruptible(module.command))
        else:
            app.command(name, help=text)(_not_chosen)
    return app


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line and exits: 0 done, 1 failed, 2 used wrongly, 130 interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        check_environment()
        set_up_logging()
        chosen = next((word for word in arguments if not word.startswith("-")), None)
        make_app(chosen)(arguments, prog_name="trivet")
    except TrivetError as error:
        print_error(error)
        sys.exit(EXIT_FAILED)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:  # `trivet ... | head`
        sys.stderr.close()
        sys.exit(EXIT_FAILED)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"trivet {__version__}")
        raise typer.Exit


def _top(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """Trivet serves a model checkpoint: fast, small to install, and honest about what each answer took."""


def _interruptible(command: Callable[..., Any]) -> Callable[..., Any]:
    """`command`, where Ctrl-C ends with status 130 (typer would say 1)."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            raise typer.Exit(EXIT_INTERRUPTED) from None

    return run


def _not_chosen() -> None:
    raise AssertionError("a command that was not chosen cannot run")


if __name__ == "__main__":
    main()
