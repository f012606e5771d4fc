"""Finds in a submission, under any name, what the lab asks for: model, scripts, serve command, report; and says why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from lab3.errors import UsageError
from lab3.grading import choosing
from lab3.grading.choosing import Candidate, Paper
from lab3.grading.commands import Commands, QuantizeCommand, ServeCommand
from lab3.grading.documents import SCRIPTS, read_document
from lab3.grading.files import list_files, relative
from lab3.grading.problems import Problem, shown
from lab3.grading.python_source import Endpoint, PythonFacts
from lab3.grading.serve_command import read_commands
from lab3.grading.settings import NAME, Settings, read_settings

Role = Literal["model", "chat", "tools", "serve", "report"]
ROLES: tuple[Role, ...] = ("model", "chat", "tools", "serve", "report")
MOST_READ = 400  # files whose text is looked at
MOST_CHARACTERS = 8 << 20  # of scripts and texts together, without reports' and notebooks' pictures
TUTORIAL = Endpoint(
    scheme="http", host="0.0.0.0", port=23333, path="/v1", line=0, how="the tutorial's, since the script names none"
)
_READ = SCRIPTS | {".py", ".ipynb", ".md", ".markdown", ".txt", ""}
_REPORTS = (".md", ".markdown", ".ipynb", ".pdf", ".docx", ".doc", ".html", ".htm", ".txt")


@dataclass(frozen=True, kw_only=True)
class Found:
    """What was taken for a role, `by` whose word, and what else could have been."""

    path: Path
    role: Role
    why: str
    by: Literal["lab3.toml", "content", "name"]
    others: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Collected:
    """A submission, read. `serve` is the command that was taken; `commands` are all, in the order of the files.

    `endpoints`: for "chat" and "tools" the servers that the script names, the tutorial's if it names none.
    `models`: the names by which it asks for one, if it does not take what the server lists.
    """

    folder: Path
    student: str
    found: tuple[Found, ...]
    serve: ServeCommand | None
    quantize: QuantizeCommand | None
    commands: Commands
    endpoints: dict[str, tuple[Endpoint, ...]]
    models: dict[str, tuple[str, ...]]
    problems: tuple[Problem, ...]

    def pick(self, role: Role) -> Path | None:
        """What was taken for the role."""
        return next((found.path for found in self.found if found.role == role), None)

    def doors(self, role: Literal["chat", "tools"]) -> tuple[tuple[str, int], ...]:
        """(host, port) of this machine's servers that the script wants to reach."""
        return tuple((each.host, each.port) for each in self.endpoints.get(role, ()) if each.local)

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values; paths are relative to the folder, and printable."""
        return {
            "student": self.student,
            "found": [{**asdict(each), "path": relative(each.path, self.folder)} for each in self.found],
            "serve": self.serve.to_dict() if self.serve else None,
            "quantize": self.quantize.to_dict() if self.quantize else None,
            "endpoints": {role: [asdict(each) for each in named] for role, named in self.endpoints.items()},
            "models": {role: list(names) for role, names in self.models.items()},
            "problems": [asdict(each) for each in self.problems],
        }


def collect(folder: Path, *, model_roots: Sequence[Path] = ()) -> Collected:
    """Read the submission. Nothing of it is imported or run, and nothing outside of it is looked at but `model_roots`.

    A model that a serve command or lab3.toml names, and that was not handed in, is looked for in `model_roots`.
    What is wrong with the submission is told in `problems`. Raises UsageError if `folder` is no folder.
    """
    return _Collector(folder, model_roots).collect()


class _Collector:
    def __init__(self, folder: Path, model_roots: Sequence[Path]) -> None:
        self._folder, self._roots = folder, model_roots
        self._problems: list[Problem] = []
        self._found: list[Found] = []

    def collect(self) -> Collected:
        listing = list_files(self._folder)
        self._problems += listing.problems
        settings = self._settings()
        papers = list(self._papers(listing.files, settings))
        commands = Commands()
        for paper in papers:
            commands += paper.document.commands
        serve = self._serve(papers, settings)
        self._model(listing.files, settings, serve)
        endpoints, models = self._scripts(papers, settings, serve)
        self._report(listing.files, papers, settings)
        if serve is not None:
            self._problems += serve.problems
        return Collected(
            folder=self._folder,
            student=settings.student or shown(self._folder.resolve().name),
            found=tuple(self._found),
            serve=serve,
            quantize=choosing.quantize_command(commands, serve),
            commands=commands,
            endpoints=endpoints,
            models=models,
            problems=(*self._problems, *commands.problems),
        )

    def _settings(self) -> Settings:
        try:
            return read_settings(self._folder, model_roots=self._roots)
        except UsageError as error:
            what = f"{error.what}; it is not followed until you {error.todo}"
            self._problems.append(Problem(kind="settings", severity="broken", what=shown(what, 500), source=NAME))
            return Settings()

    def _papers(self, files: Sequence[Path], settings: Settings) -> Sequence[Paper]:
        said = [path for path in (settings.chat, settings.tools, settings.serve, settings.report) if path]
        some = [path for path in files if path.suffix.lower() in _READ and path not in said]
        readable = [*dict.fromkeys(said), *some]
        if len(readable) > MOST_READ:
            self._note("too_many_files", f"{len(readable)} scripts and texts, of which {MOST_READ} were read")
        papers: dict[tuple[str, str], Paper] = {}
        characters = 0
        for path in readable[:MOST_READ]:
            if (paper := self._paper(path)) is None:
                continue
            characters += paper.document.characters
            if characters > MOST_CHARACTERS:
                self._note("too_much_text", f"more text than anybody reads: nothing after {paper.name} was looked at")
                break
            own = paper.name if path in said else path.suffix.lower()
            twin = papers.setdefault((paper.document.digest, own), paper)
            if twin is not paper:
                better, other = sorted((twin, paper), key=choosing.plainness)
                papers[paper.document.digest, own] = replace(better, copies=(*twin.copies, other.name))
        return list(papers.values())

    def _paper(self, path: Path) -> Paper | None:
        name = relative(path, self._folder)
        try:
            document = read_document(path, source=name)
        except UsageError as error:
            self._problems.append(Problem(kind="unreadable", severity="note", what=error.what, source=name))
            return None
        return Paper(path=path, name=name, document=document)

    # --- what is taken for what --------------------------------------------------------------------------------------

    def _take(self, role: Role, candidates: Sequence[Candidate], *, said: Path | None = None) -> Paper | None:
        """The first of the candidates, or what lab3.toml says."""
        if said is not None:
            others = tuple(f"{each.name} ({each.why})" for each in candidates[:20] if each.path != said)
            self._found.append(Found(path=said, role=role, why=f"{NAME} says so", by="lab3.toml", others=others))
            return next((each.paper for each in candidates if each.path == said), None)
        if not candidates:
            return None
        first, *rest = candidates
        others = tuple(f"{each.name} ({each.why})" for each in rest[:20])
        copies = tuple(f"{name} (the same)" for name in (first.paper.copies if first.paper else ()))
        self._found.append(Found(path=first.path, role=role, why=first.why, by=first.by, others=(*copies, *others)))
        return first.paper

    def _serve(self, papers: Sequence[Paper], settings: Settings) -> ServeCommand | None:
        if settings.serve_command is not None:
            why = f"{NAME} has the command"
            self._found.append(Found(path=self._folder / NAME, role="serve", why=why, by="lab3.toml"))
            said = read_commands(settings.serve_command, source=NAME).serve
            if not said:
                self._no("serve", f"{NAME}: serve is no command that starts LMDeploy's API server")
            return said[0] if said else None
        if settings.serve is not None:
            papers = [paper for paper in papers if paper.path == settings.serve]
        candidates = choosing.serve_commands(papers)
        self._take("serve", candidates, said=settings.serve)
        if not candidates:
            self._no("serve", "no `lmdeploy serve api_server` with a model in any script, notebook or report")
        return candidates[0].command if candidates else None

    def _model(self, files: Sequence[Path], settings: Settings, serve: ServeCommand | None) -> None:
        inside = choosing.models(files, self._folder)
        if settings.model is not None:
            self._take("model", inside, said=settings.model)
            return
        named = serve.model if serve else None
        candidates = choosing.preferring(inside, named)
        outside = choosing.model_outside(named, self._roots) if not candidates else None
        if outside is not None:
            why = f"the serve command names {shown(named or '')}, which the grader has"
            self._found.append(Found(path=outside, role="model", why=why, by="content"))
            return
        self._take("model", candidates)
        if not candidates:
            where = f", and the command's {shown(named)} is not here" if named else ""
            self._no("model", f"no folder with a config.json that tells of a quantization{where}")
        elif len(candidates) > 1 and not candidates[0].named:
            self._note("ambiguous", f"{len(candidates)} quantized models, of which {candidates[0].name} was taken")
        elif named and not candidates[0].named:
            self._note("other_model", f"the command serves {shown(named)}, and the folder holds {candidates[0].name}")

    def _scripts(
        self, papers: Sequence[Paper], settings: Settings, serve: ServeCommand | None
    ) -> tuple[dict[str, tuple[Endpoint, ...]], dict[str, tuple[str, ...]]]:
        endpoints: dict[str, tuple[Endpoint, ...]] = {}
        models: dict[str, tuple[str, ...]] = {}
        candidates = choosing.scripts(papers, self._folder)
        roles: tuple[tuple[Literal["chat", "tools"], Path | None], ...] = (
            ("chat", settings.chat),
            ("tools", settings.tools),
        )
        for role, said in roles:
            paper = self._take(role, candidates[role], said=said)
            asking = f"a chat completion {'with' if role == 'tools' else 'without'} tools"
            if said is not None and paper is None:
                paper = next((each for each in papers if each.path == said), None)
                self._note("role", f"{relative(said, self._folder)} is said to ask for {asking}, and does not show it")
            if paper is None or paper.document.python is None:
                self._no(role, f"no Python script asks for {asking}{choosing.hint(papers, tools=role == 'tools')}")
                continue
            together = choosing.with_helpers(paper, papers, self._folder)
            endpoints[role] = self._reached(paper, together, serve)
            models[role] = tuple(dict.fromkeys(name for each in together for name in each.models))
            if fault := paper.document.python.fault:
                self._problems.append(Problem(kind="syntax", severity="broken", what=fault, source=paper.name))
        return endpoints, models

    def _reached(
        self, paper: Paper, together: Sequence[PythonFacts], serve: ServeCommand | None
    ) -> tuple[Endpoint, ...]:
        named = tuple({(each.host, each.port): each for facts in together for each in facts.endpoints}.values())
        silent = next((facts.no_base_url for facts in together if facts.no_base_url), 0)
        if not named:
            what = "an OpenAI client that is not told where the server is" if silent else "no server's address is told"
            what += f"; {TUTORIAL.host}:{TUTORIAL.port} is taken"
            self._problems.append(
                Problem(kind="no_endpoint", severity="note", what=what, source=paper.name, line=silent)
            )
            return (TUTORIAL,)
        if len(named) > 1:
            what = "several servers: " + ", ".join(f"{each.host}:{each.port}" for each in named)
            self._problems.append(Problem(kind="endpoints", severity="note", what=what, source=paper.name))
        for each in named:
            if not each.local:
                what = f"a server elsewhere, which cannot be reached: {each.host}:{each.port}"
                self._problems.append(
                    Problem(kind="elsewhere", severity="note", what=what, source=paper.name, line=each.line)
                )
            elif serve is not None and each.port != serve.port:
                what = f"port {each.port} is asked, and the command serves on {serve.port}"
                self._problems.append(
                    Problem(kind="port", severity="note", what=what, source=paper.name, line=each.line)
                )
        return named

    def _report(self, files: Sequence[Path], papers: Sequence[Paper], settings: Settings) -> None:
        found = [path for path in files if path.suffix.lower() in _REPORTS]
        taken = {
            each.path for each in self._found if each.role in ("chat", "tools", "serve") and each.path.suffix != ".md"
        }
        candidates = choosing.reports([path for path in found if path not in taken], papers, self._folder)
        if not candidates:  # a notebook may be everything at once
            candidates = choosing.reports(found, papers, self._folder)
        self._take("report", candidates, said=settings.report)
        if not candidates and settings.report is None:
            self._no("report", f"no report ({', '.join(_REPORTS)})")

    def _no(self, role: str, what: str) -> None:
        self._problems.append(Problem(kind=f"no_{role}", severity="note", what=what))

    def _note(self, kind: str, what: str) -> None:
        self._problems.append(Problem(kind=kind, severity="note", what=what))
