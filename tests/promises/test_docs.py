"""What the docs say is so: every setting and command is there, with its default and its sentence."""

import re
from itertools import pairwise
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from app.cli.commands import main
from app.dashboard.findings import PAGES
from app.dashboard.pages import NAVIGATION
from app.settings import Settings

ROOT = Path(__file__).parents[2]


def shown(default: object) -> str:
    match default:
        case None | ():
            return "unset"
        case bool():
            return f"`{str(default).lower()}`"
        case tuple():
            return f"`{','.join(map(str, default))}`"
        case _:
            return f"`{default}`"


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_documented_with_its_default(name: str) -> None:
    field = Settings.model_fields[name]
    line = f"| `{name.upper()}` | {shown(field.default)} | {field.description} |"
    assert line in (ROOT / "docs/settings.md").read_text().splitlines()


def test_no_setting_is_documented_that_does_not_exist() -> None:
    documented = re.findall(r"^\| `([A-Z_]+)` \|", (ROOT / "docs/settings.md").read_text(), re.MULTILINE)
    assert documented == [name.upper() for name in Settings.model_fields]


def commands(group: click.Group, prefix: str = "") -> list[str]:
    found = []
    for name, command in group.commands.items():
        found += commands(command, f"{prefix}{name} ") if isinstance(command, click.Group) else [f"{prefix}{name}"]
    return found


@pytest.mark.parametrize("command", commands(main))
def test_every_command_is_documented_and_has_a_sentence_of_help(command: str) -> None:
    assert f"`{command}" in (ROOT / "docs/commands.md").read_text()
    found: click.Command = main
    for name in command.split():
        assert isinstance(found, click.Group)
        found = found.commands[name]
    assert (found.help or "").strip().endswith(".") or "\n" in (found.help or "")


def command_at(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that the first words name, and the words after it. Raises KeyError where there is none."""
    found: click.Command = main
    while isinstance(found, click.Group):
        name, *words = words
        found = found.commands[name]
    return found, words


def documented_commands() -> list[str]:
    """The commands of the page with their arguments and options, as they stand there."""
    found: list[str] = []
    table, _, _ = (ROOT / "docs/commands.md").read_text().partition("\n## ")
    for row in re.findall(r"^\| (`.*?) \| ", table, re.MULTILINE):
        for text in re.findall(r"`([^`]+)`", row):
            # Where a row gives another way to call a command, it does not repeat its name.
            found.append(f"{found[-1].split()[0]} {text}" if text.startswith("--") else text)
    return found


@pytest.mark.parametrize("line", documented_commands())
def test_no_command_option_or_argument_is_documented_that_does_not_exist(line: str) -> None:
    command, words = command_at(line.split())
    options = {option for parameter in command.params for option in parameter.opts}
    assert {word.strip("[]") for word in words if "--" in word} <= options
    arguments = {str(parameter.name).upper() for parameter in command.params if isinstance(parameter, click.Argument)}
    values = [word.strip("[]…") for before, word in pairwise(["", *words]) if "--" not in before]
    named = {word for word in values if word.isupper()}
    assert named <= arguments | {name.removesuffix("S") for name in arguments}


def test_help_shows_every_command_of_the_page() -> None:
    """What `--help` prints, of the program and of each group."""
    shown = CliRunner().invoke(main, ["--help"]).output
    for line in documented_commands():
        assert re.search(rf"^  {line.split()[0]} ", shown, re.MULTILINE), line


def test_every_command_that_takes_json_is_named_as_one_that_does() -> None:
    [sentence] = re.findall(r"^(`.*) print JSON with `--json`", (ROOT / "docs/commands.md").read_text(), re.MULTILINE)
    named = set(re.findall(r"`([^`]+)`", sentence))
    takes = {
        name
        for name in commands(main)
        if any("--json" in parameter.opts for parameter in command_at(name.split())[0].params)
    }
    assert named == takes


def test_every_finding_has_its_heading_in_the_runbook_and_its_page_on_the_dashboard() -> None:
    sources = [(ROOT / name).read_text() for name in ("app/status.py", "app/dashboard/findings.py")]
    pattern = r'(?:_problem\(|_note\(|Finding\(\s*Level\.[A-Z]+,)\s*"([a-z-]+)"'
    codes = {code for source in sources for code in re.findall(pattern, source)}
    headings = re.findall(r"^### (.+)$", (ROOT / "docs/operations/runbook.md").read_text(), re.MULTILINE)
    assert sorted(codes) == sorted(code for heading in headings for code in heading.split(", "))
    assert codes == PAGES.keys()
    assert set(PAGES.values()) <= dict(NAVIGATION).keys()
    assert len(codes) > 20


@pytest.mark.parametrize(("section", "maker"), [("Problems", "_problem"), ("Notes", "_note")])
def test_the_runbook_has_each_finding_of_status_under_its_level(section: str, maker: str) -> None:
    _, _, found = (ROOT / "docs/operations/runbook.md").read_text().partition(f"\n## {section}\n")
    headings = re.findall(r"^### (.+)$", found.partition("\n## ")[0], re.MULTILINE)
    codes = set(re.findall(rf'{maker}\(\s*"([a-z-]+)"', (ROOT / "app/status.py").read_text()))
    assert sorted(codes) == sorted(code for heading in headings for code in heading.split(", "))


@pytest.mark.parametrize(
    "page", sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")], key=str), ids=lambda page: page.name
)
def test_links_between_the_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
