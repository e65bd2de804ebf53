"""The command `peg`: commands of plugins, errors as a few lines, exit statuses."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time

import pytest

from pegboard import __version__
from pegboard.cli import run_cli

COMMAND = """
import click
from pegboard.plugins.spec import PluginSpec
S = PluginSpec(kind="command", target=__name__ + ":command")
{imports}
@click.command()
@click.argument("word", default="")
def command(word):
    "Say it."
    {body}
"""


@pytest.fixture
def add(site):
    def install(name: str, body: str, dist: str = "word-peg") -> None:
        module = f"command_{name.replace('.', '_')}"
        site.add(dist, {("command", name): f"{module}:S"}, {module: COMMAND.format(imports="", body=body)})

    return install


def test_help_names_every_command_and_imports_none(add, site, peg) -> None:
    add("say", "click.echo(word)")
    add("group.say", "click.echo(word)", "group-peg")
    site.add("bad-peg", {("command", "bad"): "bad_command:S"}, {"bad_command": "1/0"})
    site.add("old-peg", {("command", "old"): "old_command:S"}, requires=["pegboard<0"])
    said = peg("--help")
    assert said.status == 0
    rows = dict(line.split(maxsplit=1) for line in said.out.partition("Commands:\n")[2].splitlines() if line.strip())
    assert rows["say"] == "The word-peg of a test"
    assert rows["group"] == "Commands of group-peg."
    assert rows["bad"] == "The bad-peg of a test"
    assert rows["old"] == "The old-peg of a test [incompatible]"
    assert set(rows) >= {"run", "config", "plugins", "doctor", "convert"}
    assert site.imported() == []


def test_commands_of_plugins(add, site, peg) -> None:
    add("say", "click.echo('said ' + word)")
    add("group.say", "click.echo('group said ' + word)", "group-peg")
    assert peg("say", "it").out == "said it\n"
    assert site.imported() == ["command_say"]
    assert peg("group", "say", "it").out == "group said it\n"
    assert "Say it." in peg("group", "say", "--help").out
    assert "say  The group-peg of a test" in peg("group", "--help").out


def test_commands_of_plugins_beside_our_own(add, peg) -> None:
    add("plugins.praise", "click.echo('well done')")
    assert peg("plugins", "praise").out == "well done\n"
    assert "praise" in peg("plugins", "--help").out
    assert peg("plugins", "list").status == 0


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("1/0", "command 'bad' of bad-peg failed: its front door bad_command:S fails: ZeroDivisionError"),
        (
            "from pegboard.plugins.spec import PluginSpec\nS = PluginSpec(kind='command', target='json:loads')",
            "command 'bad' is a function, expected a click.Command",
        ),
    ],
)
def test_a_broken_command_is_an_error_when_it_is_asked_for(site, peg, source: str, message: str) -> None:
    site.add("bad-peg", {("command", "bad"): "bad_command:S"}, {"bad_command": source})
    said = peg("bad")
    assert said.status == 2
    assert message in said.err
    assert peg("--help").status == 0


def test_two_commands_of_one_name_conflict_when_one_is_asked_for(site, peg) -> None:
    for dist in ("one", "two"):
        site.add(f"{dist}-peg", {("command", "same"): f"same_{dist}:S"}, {f"same_{dist}": "1/0"})
    (line,) = [line for line in peg("--help").out.splitlines() if line.split()[:1] == ["same"]]
    assert line.endswith("-peg of a test [conflict]")
    said = peg("same")
    assert said.status == 2
    assert "offered by one-peg 1.0 and two-peg 1.0" in said.err
    assert site.imported() == []


def test_unknown_commands(add, peg) -> None:
    add("shout", "click.echo(word)")
    said = peg("shuot")
    assert said.status == 2
    assert "peg has no command 'shuot' (did you mean 'shout'?)" in said.err


def test_a_known_command_comes_with_its_pip_command(site, peg, monkeypatch) -> None:
    monkeypatch.setattr("sys.path", [str(site.folder)])
    assert peg("chat").err == "error: peg has no command 'chat'\n  fix: pip install pegboard-engine\n"
    assert "fix: pip install pegboard-bench pegboard-engine" in peg("bench").err
    assert "did you mean 'config'?" in peg("confgi").err


def test_blocked_commands_say_so(add, peg, monkeypatch) -> None:
    add("say", "click.echo(word)")
    monkeypatch.setenv("PEGBOARD_DISABLE_PLUGINS", "say")
    said = peg("say")
    assert said.status == 2
    assert "peg say is blocked: disabled as 'say'" in said.err
    assert "say " not in peg("--help").out


def test_version_and_usage(peg) -> None:
    assert peg("--version").out == f"peg, version {__version__}\n"
    said = peg("run")
    assert said.status == 2
    assert "Missing argument 'RECIPE'" in said.err
    assert peg("--nonsense").status == 2


@pytest.mark.parametrize(
    ("body", "status", "err"),
    [
        ("from pegboard.errors import DataError; raise DataError('odd', fix='even')", 2, "error: odd\n  fix: even\n"),
        ("from pegboard.errors import DataError; raise DataError('odd')", 2, "error: odd\n"),
        ("raise KeyboardInterrupt", 130, "\nerror: interrupted\n"),
        ("raise click.Abort", 130, "error: interrupted\n"),
        ("raise OSError({ENOSPC}, 'full', 'x/y')", 2, "error: x/y: the disk is full\n  fix: free some space"),
        ("raise MemoryError", 2, "error: out of memory\n  fix: use a smaller batch"),
        (
            "import torch; torch.empty(1 << 60, dtype=torch.uint8)",
            2,
            "you tried to allocate 1152921504606846976 bytes. Error code 12 (Cannot allocate memory)\n  fix: use a smaller",
        ),
        ("raise OSError({EACCES}, 'no', 'x/y')", 2, "error: x/y: permission denied\n  fix: check"),
        (
            "raise OSError({EFBIG}, 'no', 'x/y')",
            2,
            "error: x/y: the file is larger than may be written here\n  fix: raise",
        ),
        ("raise OSError({ENAMETOOLONG}, 'no', 'x/y')", 2, "error: x/y: the name is too long\n  fix: choose"),
        ("raise OSError({ENOTDIR}, 'no', 'x/y')", 2, "error: x/y: a part of the path is a file"),
        ("raise OSError({ELOOP}, 'no', 'x/y')", 2, "error: x/y: the link leads in a circle\n  fix: name"),
        ("raise OSError({EROFS}, 'no')", 2, "error: the file system is read-only\n  fix: write elsewhere"),
        ("click.get_current_context().exit(3)", 3, ""),
        ("return None", 0, ""),
        ("raise click.UsageError('odd')", 2, "Error: odd"),
    ],
)
def test_exit_statuses(add, peg, body: str, status: int, err: str) -> None:
    add("act", body.format(**{name: number for number, name in errno.errorcode.items()}))
    said = peg("act")
    assert said.status == status
    assert err in said.err
    assert "Traceback" not in said.err


@pytest.mark.parametrize("error", ["RuntimeError('ours')", "FileNotFoundError(2, 'ours', 'x')"])
def test_a_defect_keeps_its_traceback(add, peg, error: str) -> None:
    add("act", f"raise {error}")
    with pytest.raises((RuntimeError, FileNotFoundError), match="ours"):
        peg("act")


def test_debugging_shows_the_traceback_of_a_mistake(add, peg, monkeypatch) -> None:
    add("act", "from pegboard.errors import DataError; raise DataError('odd', fix='even')")
    monkeypatch.setenv("PEGBOARD_DEBUG", "1")
    said = peg("act")
    assert said.status == 2
    assert said.err.startswith("Traceback (most recent call last):")
    assert said.err.endswith("error: odd\n  fix: even\n")


def test_log_lines_go_to_standard_error(add, peg) -> None:
    add("act", "import logging; log = logging.getLogger('pegboard.x'); log.info('a %s', 1); log.warning('b')")
    assert peg("act").err == "a 1\nwarning: b\n"


def test_a_reader_that_goes_away_is_no_error(site) -> None:
    script = f"{sys.executable} -m pegboard plugins list --json | head -c 1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {script}"], capture_output=True, text=True)
    assert done.stdout == "["
    assert done.stderr == ""
    assert done.returncode in (0, 141)


def test_control_c(add) -> None:
    add("wait", "import time; click.echo('waiting'); time.sleep(600)")
    command = [sys.executable, "-u", "-m", "pegboard", "wait"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "waiting\n"
    time.sleep(0.1)
    os.kill(child.pid, signal.SIGINT)
    _, err = child.communicate()
    assert (child.returncode, err.strip()) == (130, "error: interrupted")


def test_a_module_is_the_command_too() -> None:
    done = subprocess.run([sys.executable, "-m", "pegboard", "--version"], capture_output=True, text=True)
    assert done.stdout == f"peg, version {__version__}\n"


def test_arguments_default_to_those_of_the_process(monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.argv", ["peg", "--version"])
    assert run_cli() == 0
    assert __version__ in capsys.readouterr().out
