"""`peg serve`: a model behind HTTP."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import click

from pegboard.errors import ConfigError

if TYPE_CHECKING:
    from pegboard_server.options import Limits, ServerOptions

log = logging.getLogger("pegboard.server")


@click.command()
@click.argument("model")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at; 0.0.0.0 is every one.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0 is any free port.")
@click.option("--name", "names", multiple=True, metavar="NAME", help="What requests call the model; may be repeated.")
@click.option(
    "--adapter", "adapters", multiple=True, metavar="NAME=FOLDER", help="Serve an adapter too; may be repeated."
)
@click.option("--api-key", "keys", multiple=True, metavar="KEY", help="A key that requests must show; may be repeated.")
@click.option("--api-key-file", metavar="FILE", help="Keys, one a line. Also read: PEGBOARD_API_KEYS, commas between.")
@click.option("--cache-per-key", is_flag=True, help="Share cached prefixes among requests of the same key alone.")
@click.option("--allow-origin", "origins", multiple=True, metavar="URL", help="A web page's origin that may call us.")
@click.option(
    "--allow-host", "hosts", multiple=True, metavar="NAME", help="A further name of ours, where no key guards."
)
@click.option(
    "--admin-port", type=click.IntRange(0, 65535), help="Listen for adapters and cache resets too; off if not given."
)
@click.option("--admin-host", default="127.0.0.1", show_default=True, help="Address of that listener.")
@click.option("--certfile", metavar="FILE", help="TLS certificate, PEM.")
@click.option("--keyfile", metavar="FILE", help="Its key, PEM.")
@click.option("--client-ca", metavar="FILE", help="Only clients whose certificate this authority signed may connect.")
@click.option("--tool-parser", default="auto", show_default=True, metavar="NAME", help="How tool calls are written.")
@click.option("--reasoning-parser", default="auto", show_default=True, metavar="NAME", help="How reasoning is written.")
@click.option(
    "--pooling", default="last", show_default=True, type=click.Choice(["last", "mean"]), help="Of embeddings."
)
@click.option("--score-template", metavar="FILE", help="Text of /score, with {query} and {document}.")
@click.option("--score-labels", default="yes,no", show_default=True, help="The answers of /score, yes first.")
@click.option("--unknown-fields", default="reject", show_default=True, type=click.Choice(["reject", "ignore"]))
@click.option("--deadline", type=click.FloatRange(min=0, min_open=True), metavar="S", help="Longest time of a request.")
@click.option(
    "--queue-timeout", type=click.FloatRange(min=0, min_open=True), metavar="S", help="Longest wait for its turn."
)
@click.option(
    "--grace", default=30.0, show_default=True, metavar="S", help="Time for open streams when the server stops."
)
@click.option("--limit", "limits", multiple=True, metavar="KEY=VALUE", help="A limit of a request; see the README.")
@click.option("--engine", default="paged", show_default=True, metavar="NAME", help="An engine plugin.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="An option of the engine; may be repeated.")
@click.option("--kv-memory", metavar="SIZE", help="Memory of the cache: bytes, 512MB, or a share such as 50%.")
@click.option("--max-model-len", type=int, metavar="N", help="Longest prompt and output together, in tokens.")
@click.option("--revision", metavar="REV", help="Branch, tag or commit of a hub id.")
@click.option("--dtype", default="auto", show_default=True, help="Dtype of weights and activations.")
@click.option("--platform", default="auto", show_default=True, metavar="NAME", help="A platform plugin.")
@click.option("--device", default=0, show_default=True, help="Which device of the platform.")
@click.option("--attention", default="auto", show_default=True, metavar="NAME", help="An attention plugin.")
@click.option("--quantizer", metavar="NAME", help="A plugin that holds the weights in fewer bits.")
@click.option(
    "--threads", type=click.IntRange(min=1), help="Processor threads; the platform's own choice if not given."
)
def serve(model: str, **given: Any) -> None:
    """Serve MODEL (a file, a folder of a model or an adapter, a hub id) over HTTP, as OpenAI's clients expect it.

    SIGTERM and Ctrl-C let open streams end; a second one ends them at once.
    """
    options = server_options(model, given)
    engine: dict[str, Any] = {"use": given["engine"], **pairs("--set", given["settings"])}
    adapters = pairs("--adapter", given["adapters"])
    engine |= {key: given[key] for key in ("kv_memory", "max_model_len") if given[key] is not None}
    import asyncio
    import gc
    from contextlib import ExitStack
    from dataclasses import replace

    from pegboard.garbage import uncollected

    with ExitStack() as stack:
        with uncollected():
            from pegboard.build import choose_platform
            from pegboard.plugins.load import Registry
            from pegboard_server.app import create_admin_app, create_app
            from pegboard_server.serving import Address, Door, bind, load_engine, make_served
            from pegboard_server.serving import serve as listen

            address = Address(given["host"], given["port"], given["certfile"], given["keyfile"], given["client_ca"])
            addresses = [address]
            if given["admin_port"] is not None:
                addresses.append(replace(address, host=given["admin_host"], port=given["admin_port"]))
            # Before the model is read, which takes long: whatever else can be wrong.
            sockets = [stack.enter_context(bind(each)) for each in addresses]
            registry = Registry.discover()
            name, platform = choose_platform(registry, given["platform"])
            platform.configure(threads=given["threads"])
            build = {key: given[key] for key in ("device", "dtype", "attention", "quantizer")}
            loaded = load_engine(registry, model, engine=engine, revision=given["revision"], platform=name, **build)
            for adapter, folder in adapters.items():
                loaded[0].load_adapter(adapter, str(folder))
            served = make_served(registry, *loaded[:2], options, loaded[2])
            apps = (create_app(served), create_admin_app(served))
            doors = [Door(*each) for each in zip(apps, addresses, sockets, strict=False)]
            # What is there now stays. Without this it is searched for garbage again and again while requests wait, and at the end. It is
            # not searched now: loading leaves next to none, and the modules of a large mixture take most of a second.
            gc.freeze()
        asyncio.run(listen(served, doors))


def server_options(model: str, given: dict[str, Any]) -> ServerOptions:
    """Return the options of the server from those of the command. Raises ConfigError for what makes no sense."""
    import os
    from pathlib import Path

    from pegboard_server.options import ServerOptions
    from pegboard_server.security import KEYS_VARIABLE, LOOPBACK, read_keys

    keys = read_keys(given["keys"], given["api_key_file"], os.environ.get(KEYS_VARIABLE))
    if given["cache_per_key"] and not keys:
        raise ConfigError("--cache-per-key needs keys", fix="give --api-key, or leave it out")
    if (given["certfile"] is None) != (given["keyfile"] is None) or (given["client_ca"] and not given["certfile"]):
        raise ConfigError("TLS needs --certfile and --keyfile together", fix="give both, or neither")
    if "*" in given["origins"] and not keys:
        raise ConfigError("every web page may call a server without keys", fix="give --api-key, or name the origins")
    local = given["host"] in LOOPBACK
    if not local and not keys:
        log.warning("whoever reaches %s may use this server: give --api-key to ask for a key", given["host"])
    if given["admin_port"] is not None and given["admin_host"] not in LOOPBACK and not keys:
        raise ConfigError(
            f"whoever reaches {given['admin_host']} could change what is served",
            fix="give --api-key, or leave --admin-host out",
        )
    short = Path(model).name.removesuffix(".gguf") or model
    return ServerOptions(
        names=given["names"] or tuple(dict.fromkeys((short, model))),
        keys=keys,
        cache_per_key=given["cache_per_key"],
        origins=given["origins"],
        hosts=(*LOOPBACK, *given["hosts"]) if local or given["hosts"] else None,
        unknown=given["unknown_fields"],
        pooling=given["pooling"],
        score_template=_template(given["score_template"]),
        score_labels=_labels(given["score_labels"]),
        tool_parser=given["tool_parser"],
        reasoning_parser=given["reasoning_parser"],
        deadline=given["deadline"],
        queue_timeout=given["queue_timeout"],
        grace=given["grace"],
        limits=read_limits(given["limits"]),
    )


def read_limits(texts: tuple[str, ...]) -> Limits:
    """Return the limits with those of `texts` ("key=value") changed. Raises ConfigError naming a wrong one."""
    from dataclasses import fields, replace

    from pegboard.errors import nearest
    from pegboard_server.options import Limits

    known = {field.name: field.type for field in fields(Limits)}
    values = pairs("--limit", texts)
    for key, value in values.items():
        if key not in known:
            raise ConfigError(f"there is no limit {key!r}{nearest(key, known)}", fix=f"limits are: {', '.join(known)}")
        wanted = (int, float) if known[key] == "float" else (int,)
        if isinstance(value, bool) or not isinstance(value, wanted) or value <= 0:
            raise ConfigError(f"the limit {key} is {value!r}", fix="give a number above 0")
    return replace(Limits(), **values)


def _template(file: str | None) -> str | None:
    from pathlib import Path

    if file is None:
        return None
    try:
        text = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--score-template {file} cannot be read: {error}", fix="name a text file") from error
    if "{query}" not in text or "{document}" not in text:
        raise ConfigError(f"--score-template {file} lacks {{query}} or {{document}}", fix="write both into it")
    return text


def _labels(text: str) -> tuple[str, str]:
    labels = text.split(",")
    if len(labels) != 2 or not all(labels):
        raise ConfigError(f"--score-labels is {text!r}", fix="give two texts with a comma between, such as yes,no")
    return labels[0], labels[1]


def pairs(option: str, texts: tuple[str, ...]) -> dict[str, Any]:
    """Return KEY=VALUE texts as a mapping; a value is JSON where it can be read as such."""
    found: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ConfigError(f"{option} {text!r} is no setting", fix=f"write {option} key=value")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found
