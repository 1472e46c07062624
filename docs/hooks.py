"""Small translations for the site of what the repository's pages and docstrings write for other readers."""

import re
from pathlib import Path
from posixpath import join, normpath

REFERENCE = Path(__file__).parent / "reference"
OUTSIDE = re.compile(r"\[([^\]\n]+)\]\((?!\w+:)([^)#\s]+)(?:#[^)\s]*)?\)")
NAME_IN_BRACKETS = re.compile(r"\[<code>~?([\w.]+)</code>\]")
TYPE_IN_MARKDOWN = re.compile(r"<code>[^<]*`[^<]*</code>")
DEFAULT_TWICE = re.compile(r"(<code>[^<]*), optional(?:, defaults to [^<]*)?</code>, default:")
CELL = re.compile(r"<td.*?</td>", flags=re.DOTALL)
LONG_CODE = re.compile(r"<code>([^<]{16,})</code>")
ENTRY = re.compile(r"^::: ([\w.]+)$", flags=re.MULTILINE)


def on_page_markdown(markdown: str, page, **_) -> str:
    """Links to files of the repository outside `docs/` become their text: the site does not have those files."""

    def of_the_site(match: re.Match) -> str:
        target = normpath(join(page.file.src_uri, "..", match[2]))
        return match[1] if target.startswith("../") else match[0]

    return OUTSIDE.sub(of_the_site, markdown)


def on_page_content(html: str, **_) -> str:
    """Names in brackets, as docstrings here and in TRL have them, become links where the reference has an entry."""
    names = (name for page in REFERENCE.glob("*.md") for name in ENTRY.findall(page.read_text(encoding="utf-8")))
    entries = {name.rsplit(".", 1)[-1]: name for name in names}

    def linked(match: re.Match) -> str:
        name = match[1].rsplit(".", 1)[-1]
        code = f"<code>{name}</code>"
        return f'<autoref identifier="{entries[name]}" optional>{code}</autoref>' if name in entries else code

    html = NAME_IN_BRACKETS.sub(linked, TYPE_IN_MARKDOWN.sub(plain, html))
    html = DEFAULT_TWICE.sub(r"\1</code>, default:", html)
    return CELL.sub(lambda cell: LONG_CODE.sub(breakable, cell[0]), html)


def plain(match: re.Match) -> str:
    """The type of an argument without its Markdown: "[`~peft.PeftModel`], *optional*" is "PeftModel, optional"."""
    return re.sub(r"\[?`~?(?:\w+\.)*([^`]+)`\]?", r"\1", match[0]).replace("*", "")


def breakable(match: re.Match) -> str:
    """A name in a narrow column that may be broken at its joints, and nowhere else."""
    return "<code>" + re.sub(r"(::|[/_:](?=[^:])|\.(?!py|yaml|md))", r"\1<wbr>", match[1]) + "</code>"
