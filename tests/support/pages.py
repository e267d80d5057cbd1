"""The README and the pages of docs/, and the blocks of code in them."""

import re
import textwrap
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"((?:^[^\S\n]*<!-- not run: [^\n]* -->\n)?)^([^\S\n]*)```(\w*)\n(.*?)^[^\S\n]*```$", re.M | re.S)


class Block(NamedTuple):
    """A block of code without its indentation, and the reason why it is not run, if any."""

    page: str
    line: int
    language: str
    text: str
    not_run: str


def blocks(page: Path) -> list[Block]:
    """Return the blocks of code of a page, in its order."""
    text = page.read_text()
    return [
        Block(
            page.name,
            text.count("\n", 0, match.start()) + 1,
            match[3],
            textwrap.dedent(match[4]),
            match[1].strip().removeprefix("<!-- not run: ").removesuffix(" -->"),
        )
        for match in BLOCK.finditer(text)
    ]


def links(page: Path) -> set[str]:
    """Return the targets of a page's links, without their headings."""
    return {target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", BLOCK.sub("", page.read_text()))}


def section(page: Path, heading: str) -> list[Block]:
    """Return the blocks below the heading with this text, up to the next heading."""
    return _below(page, heading, 6)


def chapter(page: Path, heading: str) -> list[Block]:
    """Return the blocks below the heading with this text, up to the next heading of its level or a higher one."""
    return _below(page, heading, None)


def _below(page: Path, heading: str, depth: int | None) -> list[Block]:
    text = BLOCK.sub(lambda match: re.sub(r"[^\n]", "-", match[0]), page.read_text())  # a comment in code is no heading
    match = re.search(rf"^(#+) {re.escape(heading)}$", text, re.M)
    after = re.compile(rf"^#{{1,{depth or len(match[1])}}} ", re.M).search(text, match.end())
    first, last = text.count("\n", 0, match.start()) + 1, text.count("\n", 0, after.start() if after else len(text)) + 1
    return [block for block in blocks(page) if first < block.line < last]


class Command(NamedTuple):
    """A command with its continuation lines, and the output shown below it."""

    text: str
    output: str


def commands(block: Block) -> list[str]:
    """Return the commands of a console block without their output."""
    return [command.text for command in commands_with_output(block)]


def outputs(block: Block) -> list[str]:
    """Return the output that a console block shows for each of its commands."""
    return [command.output for command in commands_with_output(block)]


def commands_with_output(block: Block) -> list[Command]:
    """Return the commands of a console block with their output."""
    commands_found = []
    for part in re.split(r"^\$ ", block.text, flags=re.M)[1:]:
        text, *lines = part.rstrip("\n").split("\n")
        heredoc = re.search(r"<<'(\w+)'", text)
        while lines and (
            text.endswith(("\\", "&&")) or text.count("'") % 2 or (heredoc and not text.endswith(f"\n{heredoc[1]}"))
        ):
            text += "\n" + lines.pop(0)
        commands_found.append(Command(text, "\n".join(lines)))
    return commands_found
