"""`trivet serve`: a model behind the OpenAI API."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from trivet.cli.usage import flags_checked
from trivet.config import CacheConfig, EngineConfig, ModelConfig, SchedulerConfig, ServerConfig, setting_help
from trivet.errors import ConfigError
from trivet.server.milestones import Milestones
from trivet.server.sizes import parse_size


def command(
    model: Annotated[str, typer.Argument(help=setting_help(ModelConfig, "path"))] = "demo",
    *,
    host: Annotated[str, typer.Option(help=setting_help(ServerConfig, "host"))] = "127.0.0.1",
    port: Annotated[int, typer.Option(help=setting_help(ServerConfig, "port"))] = 8000,
    precision: Annotated[str, typer.Option(help=f"auto, bf16, int8 or int4. {setting_help(ModelConfig, 'precision')}")]
        = "auto",
    kv_precision: Annotated[str, typer.Option(help=f"bf16 or int8: {setting_help(CacheConfig, 'dtype')}")] = "bf16",
    group_size: Annotated[int, typer.Option(help=setting_help(ModelConfig, "group_size"))] = 32,
    max_context: Annotated[int | None, typer.Option(help=setting_help(ModelConfig, "max_context"))] = None,
    memory: Annotated[str | None, typer.Option(
        help=f"Bytes of KV cache, such as 2GiB or 500MB. {setting_help(CacheConfig, 'memory_bytes')}")] = None,
    threads: Annotated[int | None, typer.Option(help=setting_help(EngineConfig, "threads"))] = None,
    max_num_seqs: Annotated[int, typer.Option(help=setting_help(SchedulerConfig, "max_num_seqs"))] = 64,
    max_waiting: Annotated[int, typer.Option(help=setting_help(SchedulerConfig, "max_waiting"))] = 256,
    max_tokens_per_step: Annotated[int, typer.Option(help=setting_help(SchedulerConfig, "max_tokens_per_step"))] = 512,
    itl_target_s: Annotated[float, typer.Option(help=setting_help(SchedulerConfig, "itl_target_s"))] = 0.2,
    max_pause_s: Annotated[float | None, typer.Option(help=setting_help(SchedulerConfig, "max_pause_s"))] = None,
    served_model_name: Annotated[str | None, typer.Option(help=setting_help(ServerConfig, "served_model_name"))] = None,
    api_key: Annotated[list[str] | None, typer.Option(help=f"{setting_help(ServerConfig, 'api_keys')}; repeatable")]
        = None,
    api_key_file: Annotated[Path | None, typer.Option(help="more of them, one a line: a flag shows in `ps`")] = None,
    generation_config: Annotated[str, typer.Option(
        help=f"auto or none. {setting_help(ModelConfig, 'generation_config')}")] = "auto",
    drain_s: Annotated[float, typer.Option("--drain-s", help=setting_help(ServerConfig, "drain_s"))] = 20.0,
    stall_s: Annotated[float, typer.Option("--stall-s", help=setting_help(ServerConfig, "stall_s"))] = 300.0,
    in_process: Annotated[bool, typer.Option("--in-process", help=setting_help(ServerConfig, "in_process"))] = False,
    timings: Annotated[bool, typer.Option("--timings", help=setting_help(ServerConfig, "timings"))] = False,
    as_json: Annotated[bool, typer.Option("--json", help="tell what happens as JSON lines on stdout")] = False,
) -> None:  # fmt: skip
    """Serve a model through the OpenAI API, until Ctrl-C or SIGTERM.

    Try:  trivet serve
    """
    milestones = Milestones()
    milestones.reach("command line")
    with flags_checked():
        server = ServerConfig(
            host=host, port=port, served_model_name=served_model_name, api_keys=read_keys(api_key or [], api_key_file),
            in_process=in_process, drain_s=drain_s, stall_s=stall_s, timings=timings,
        )  # fmt: skip
        engine = EngineConfig(
            model=ModelConfig(
                path=model,
                precision=precision,  # type: ignore[arg-type]  # the config checks the word
                group_size=group_size,
                max_context=max_context,
                generation_config=generation_config,  # type: ignore[arg-type]
            ),
            cache=CacheConfig(
                memory_bytes=None if memory is None else parse_size(memory, "memory"),
                dtype=kv_precision,  # type: ignore[arg-type]
            ),
            scheduler=SchedulerConfig(
                max_num_seqs=max_num_seqs,
                max_waiting=max_waiting,
                max_tokens_per_step=max_tokens_per_step,
                itl_target_s=itl_target_s,
                max_pause_s=max_pause_s,
            ),
            threads=threads,
        )
    raise typer.Exit(serve(server, engine, milestones, as_json=as_json))


def serve(server: ServerConfig, engine: EngineConfig, milestones: Milestones, *, as_json: bool = False) -> int:
    """Serves until a signal. Returns the exit status; raises TrivetError where the server cannot start."""
    from trivet.server.bind import bind
    from trivet.server.lifecycle import run_server
    from trivet.server.loading import Loader
    from trivet.server.report import JsonReport, PrintedReport

    sock = bind(server)
    path = engine.model.path
    name = server.served_model_name or name_of(path)
    report = (JsonReport if as_json else PrintedReport)(server, name, milestones)
    loader = Loader(engine, model_name=name, in_process=server.in_process, milestones=milestones)
    return run_server(server, sock, loader, model_name=name, model_path=path, reporter=report, milestones=milestones)


def name_of(path: str) -> str:
    """The name a model is served under unless another is given: the last part of its path, links not followed."""
    return Path(os.path.abspath(Path(path).expanduser())).name  # `resolve` follows links


def read_keys(keys: list[str], file: Path | None) -> tuple[str, ...]:
    """The accepted keys; those of the file are its lines that are neither empty nor begin with `#`."""
    found = [key.strip() for key in keys]
    if file is not None:
        try:
            lines = file.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"`--api-key-file` is {str(file)!r}, which cannot be read: {error}") from None
        found += [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not found:
            raise ConfigError(f"`--api-key-file` is {str(file)!r}, but there is no key in it")
    if not all(found):
        raise ConfigError("`--api-key` is empty, but a key must have at least one character")
    return tuple(found)
