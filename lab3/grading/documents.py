"""Where LMDeploy's commands stand in what a student wrote: scripts, reports, notebooks, Python."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from lab3.errors import UsageError
from lab3.grading.files import PICTURED_BYTES, TEXT_BYTES, read_text
from lab3.grading.python_source import Ask, PythonFacts, notebook_python, parses, read_python
from lab3.grading.serve_command import Commands, read_commands, read_words
from lab3.grading.shell_lines import Dialect
from lab3.grading.shell_words import Variables

SCRIPTS = frozenset({".sh", ".bash", ".zsh", ".bat", ".cmd", ".ps1"})
_BATCH = frozenset({".bat", ".cmd", ".ps1"})
_SHELL_MAGICS = ("%%bash", "%%sh", "%%shell", "%%script bash", "%%script sh")
_WORDS = ("lmdeploy", "api_server", "auto_awq")
_MOST_CELLS = 2000
_MOST_COMMANDS = 200
_LONGEST_LINE = 4096  # a longer one is a picture
_MARKDOWN_CHARACTERS = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Document:
    """What a file says: LMDeploy's commands, and what the code of Python and notebooks does; `digest` of its text."""

    commands: Commands
    digest: str = ""
    characters: int = 0  # that were looked at
    python: PythonFacts | None = None
    speaks_of_asking: bool = False  # its text does, where it is no Python
    quoted_asks: tuple[Ask, ...] = ()  # in a report's code, which is not handed in as a script


def read_document(path: Path, *, source: str) -> Document:
    """Raises UsageError for a file that cannot be read, and for a notebook that is none."""
    suffix = path.suffix.lower()
    pictured = suffix in (".ipynb", ".md", ".markdown")  # which hold their pictures, or may
    text = read_text(path, most_bytes=PICTURED_BYTES if pictured else TEXT_BYTES)
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    characters = 0 if pictured else len(text)
    return replace(_read(text, suffix, source=source), digest=digest, characters=characters)


def _read(text: str, suffix: str, *, source: str) -> Document:
    if suffix == ".py":
        python = read_python(text)
        speaks = bool(python.fault) and "completions" in text
        return Document(commands=_of_python(python, source=source), python=python, speaks_of_asking=speaks)
    if suffix == ".ipynb":
        return _of_notebook(text, source=source)
    if suffix in (".md", ".markdown"):
        return Document(commands=_of_markdown(text, source=source), quoted_asks=tuple(_quoted_asks(text)))
    if not any(word in text for word in _WORDS):
        return Document(commands=Commands())
    is_script = suffix in SCRIPTS or text.startswith("#!")
    dialect: Dialect = "batch" if suffix in _BATCH else "shell" if is_script else "session"
    return Document(commands=read_commands(text, source=source, dialect=dialect))


def notebook_script(path: Path) -> str:
    """A notebook's code as a Python script, which can be run where a notebook cannot.

    What is IPython's own, such as `!pip install`, is left out, and so is a cell that is no Python, which fails alone in
    a notebook, too. Raises UsageError for what is no notebook.
    """
    return _script_of(_cells(read_text(path, most_bytes=PICTURED_BYTES)))


def _of_python(python: PythonFacts, *, source: str) -> Commands:
    found = Commands()
    for command in python.commands:
        if command.words:
            found += read_words(command.words, source=source, text=command.text, line=command.line)
        else:
            found += read_commands(command.text, source=source, first_line=command.line)
    return found


def _of_notebook(text: str, *, source: str) -> Document:
    cells = _cells(text)
    python = read_python(_script_of(cells))
    variables: Variables = {name: (value,) for name, value in python.constants.items()}
    found = Commands()
    for number, (kind, cell) in enumerate(cells, 1):
        if not any(word in cell for word in _WORDS) or len(found.serve) + len(found.others) > _MOST_COMMANDS:
            continue
        place = f"{source}, cell {number}"
        if kind == "markdown":
            found += _of_markdown(cell, source=place)
        elif _is_shell(cell):
            found += read_commands("\n" + cell.partition("\n")[2], source=place, variables=variables)
        elif kind == "code":
            found += read_commands(_bangs(cell, python), source=place, dialect="session", variables=variables)
            found += _of_python(read_python(notebook_python(cell)), source=place)
        else:
            found += read_commands(cell, source=place, dialect="session")
    return Document(commands=found, python=python)


def _cells(text: str) -> list[tuple[str, str]]:
    """(kind, text) of each cell, of notebook formats 3 and 4."""
    try:
        notebook = json.loads(text)
        sheets = [notebook, *notebook.get("worksheets", ())]
        cells = [cell for sheet in sheets for cell in sheet.get("cells", ())][:_MOST_CELLS]
        return [(str(cell.get("cell_type")), _joined(cell.get("source", cell.get("input", "")))) for cell in cells]
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise UsageError(
            "a notebook that cannot be read", why=str(error)[:200], todo="save the notebook again"
        ) from error


def _script_of(cells: list[tuple[str, str]]) -> str:
    code = [notebook_python(cell) for kind, cell in cells if kind == "code" and not _is_shell(cell)]
    return "\n\n".join(cell for cell in code if parses(cell)) + "\n"


def _joined(source: object) -> str:
    return "".join(map(str, source)) if isinstance(source, list) else str(source)


def _is_shell(cell: str) -> bool:
    return cell.lstrip().startswith(_SHELL_MAGICS)


def _bangs(cell: str, python: PythonFacts) -> str:
    """The lines that IPython gives to a shell, all others empty; its `{name}` becomes a shell's."""
    kept: list[str] = []
    goes_on = False
    for line in cell.split("\n"):
        shell = goes_on or line.lstrip().startswith(("!", "%sx ", "%system "))
        goes_on = shell and line.rstrip().endswith("\\")
        for name in python.constants if shell and "{" in line else ():
            line = line.replace(f"${{{name}}}", f"{{{name}}}").replace(f"{{{name}}}", f"${{{name}}}")
        kept.append(line.replace("%system ", "!").replace("%sx ", "!") if shell else "")
    return "\n".join(kept)


def _of_markdown(text: str, *, source: str) -> Commands:
    found = Commands()
    if not any(word in text for word in _WORDS):
        return found
    variables: Variables = {}
    for line, code in _code_of(text):
        if len(found.serve) + len(found.quantize) + len(found.others) > _MOST_COMMANDS:
            break
        found += read_commands(code, source=source, first_line=line, dialect="session", variables=variables)
        if "subprocess" in code or "os.system" in code:
            found += _of_python(read_python("\n" * (line - 1) + code), source=source)
    return found


def _quoted_asks(text: str) -> Iterator[Ask]:
    if "completions" in text:
        for line, code in itertools.islice(_code_of(text), _MOST_COMMANDS):
            if "completions" in code:
                yield from (replace(ask, line=ask.line + line - 1) for ask in read_python(code).asks)


def _code_of(text: str) -> Iterator[tuple[int, str]]:
    """(line, text) of Markdown's code, and of paragraphs, in which students leave commands without marking them."""
    from markdown_it import MarkdownIt

    short = "\n".join(line[:_LONGEST_LINE] for line in text.replace("\r\n", "\n").split("\n"))
    for token in MarkdownIt("commonmark").parse(short[:_MARKDOWN_CHARACTERS]):
        line = token.map[0] + 1 if token.map else 1
        if token.type == "fence":
            yield line + 1, token.content
        elif token.type == "code_block":
            yield line, token.content
        elif token.type == "inline" and any(word in token.content for word in _WORDS):
            inline = [child.content for child in token.children or () if child.type == "code_inline"]
            for code in inline:
                yield line, code
            lines = token.content.split("\n")
            yield line, "\n".join("" if "`" in each else each for each in lines)
