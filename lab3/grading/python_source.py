"""What a Python script asks a server for, where, and which commands it starts: read from its syntax, never run."""

from __future__ import annotations

import ast
import itertools
import threading
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import urlsplit

from lab3.grading.problems import shown
from lab3.grading.python_constants import UNKNOWN, Constants
from lab3.grading.shell_words import Word

_PARSING = threading.Lock()
MOST = 100  # asks, endpoints and commands of one script


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A place where the script asks for a chat completion, with tools or without."""

    line: int
    tools: bool
    how: str


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A server that the script names. `how` says by what."""

    scheme: str
    host: str
    port: int
    path: str
    line: int
    how: str

    @property
    def local(self) -> bool:
        """Whether it is on the machine that the script runs on."""
        return self.host in ("localhost", "0.0.0.0", "::", "::1") or self.host.startswith("127.")


@dataclass(frozen=True, kw_only=True)
class CommandText:
    """A command that the script starts: as words, or as text for a shell."""

    line: int
    text: str
    words: tuple[Word, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PythonFacts:
    """`imports`: names of modules. `models`: names by which it asks for one. `fault`: why it is no Python, or ""."""

    asks: tuple[Ask, ...] = ()
    endpoints: tuple[Endpoint, ...] = ()
    models: tuple[str, ...] = ()
    imports: tuple[str, ...] = ()
    commands: tuple[CommandText, ...] = ()
    constants: dict[str, str] = field(default_factory=dict)
    passes_tools: int = 0  # the line of a call, of whatever, with tools
    pipeline: int = 0  # the line of LMDeploy's `pipeline(…)`, which loads the model itself
    no_base_url: int = 0  # the line of an OpenAI client that nobody tells where the server is
    fault: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def read_python(source: str) -> PythonFacts:
    """The facts of a script, whatever it holds."""
    try:
        tree = parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = f" (line {error.lineno})" if isinstance(error, SyntaxError) and error.lineno else ""
        return PythonFacts(
            fault=f"no Python{line}: {shown(str(getattr(error, 'msg', '') or error or type(error).__name__))}"
        )
    return _Script(tree).facts()


class _Script:
    """One parsed script."""

    def __init__(self, tree: ast.Module) -> None:
        self._nodes: list[ast.AST] = []
        self._within: dict[int, ast.FunctionDef | ast.AsyncFunctionDef | None] = {}  # a call's id → its function
        self._walk(tree)
        self._constants = Constants(tree)
        self._calls = [node for node in self._nodes if isinstance(node, ast.Call)]
        self._named: dict[str, list[ast.Call]] = {}
        for call in self._calls:
            self._named.setdefault(_last(call.func), []).append(call)

    def _walk(self, tree: ast.Module) -> None:
        """In the order of the text; a loop, since hostile scripts nest deeply."""
        waiting: list[tuple[ast.AST, ast.FunctionDef | ast.AsyncFunctionDef | None]] = [(tree, None)]
        while waiting:
            node, function = waiting.pop()
            self._nodes.append(node)
            if isinstance(node, ast.Call):
                self._within[id(node)] = function
            inside = node if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else function
            waiting.extend((child, inside) for child in reversed(list(ast.iter_child_nodes(node))))

    def facts(self) -> PythonFacts:
        asks: list[Ask] = []
        models: list[str] = []
        for call in self._calls:
            if len(asks) < MOST and (how := self._asks(call)):
                asks.append(Ask(line=call.lineno, tools=self._gives_tools(call), how=how))
                model = self._constants.text(self._argument(call, "model"))
                models += [model] if model and UNKNOWN not in model else []
        endpoints = tuple(self._endpoints())
        return PythonFacts(
            asks=tuple(asks),
            endpoints=endpoints,
            models=tuple(dict.fromkeys(models)),
            imports=tuple(dict.fromkeys(self._imports())),
            commands=tuple(self._commands())[:MOST],
            constants=self._texts(),
            passes_tools=next(
                (call.lineno for call in self._calls if self._worth(self._keyword(call, "tools"), call)), 0
            ),
            pipeline=next((call.lineno for call in self._named.get("pipeline", ()) if self._uses("lmdeploy")), 0),
            no_base_url=self._no_base_url(endpoints),
        )

    # --- what is asked for -------------------------------------------------------------------------------------------

    def _asks(self, call: ast.Call) -> str:
        """How the call asks for a chat completion; "" if it does not."""
        chain = self._chain(call.func)
        last = chain[-1] if chain else ""
        if last in ("create", "acreate", "stream", "parse") and (
            "ChatCompletion" in chain or _follow(chain, "chat", "completions")
        ):
            return f"calls {'.'.join(chain[-3:])}"
        if last == "chat_completions_v1":
            return "calls LMDeploy's APIClient.chat_completions_v1"
        if last == "ChatOpenAI":
            return "makes LangChain's ChatOpenAI"
        if last in ("post", "request", "Request", "urlopen", "stream", "fetch"):
            texts = [
                self._constants.text(value) or "" for value in (*call.args[:2], self._keyword(call, "url")) if value
            ]
            if url := next((text for text in texts if "chat/completions" in text), ""):
                return f"sends to {shown(url.replace(UNKNOWN, '…'))}"
        return ""

    def _gives_tools(self, call: ast.Call) -> bool:
        if _last(call.func) == "ChatOpenAI":
            return bool(self._named.get("bind_tools")) or any(self._keyword(each, "tools") for each in self._calls)
        return any(self._worth(self._argument(call, name), call) for name in ("tools", "functions"))

    def _argument(self, call: ast.Call, name: str) -> ast.expr | None:
        """What the request has under this name: a keyword, or part of a dict that is passed on or sent."""
        if (value := self._keyword(call, name)) is not None:
            return value
        for keyword in call.keywords:
            if keyword.arg is None or keyword.arg in ("json", "data", "content", "body", "extra_body"):
                if (value := self._constants.keys(keyword.value).get(name)) is not None:
                    return value
                if (value := self._handed(call, keyword.value, name)) is not None:
                    return value
                if keyword.arg is None and (value := self._passed_on(call, keyword.value, name)) is not None:
                    return value
        if _last(call.func) in ("post", "request", "Request", "urlopen"):
            return next(
                (value for each in call.args for value in [self._constants.keys(each).get(name)] if value), None
            )
        return None

    def _handed(self, call: ast.Call, value: ast.expr, name: str) -> ast.expr | None:
        """`def ask(body): post(url, json=body)`, and then `ask({"tools": …})`."""
        function = self._within.get(id(call))
        if function is None or not isinstance(value, ast.Name) or (place := _parameter(function, value.id)) is None:
            return None
        for given in self._given_to(function, value.id, place):
            # A variable may have the parameter's own name, which is then several things to the script as a whole.
            named = self._assigned(given.id) if isinstance(given, ast.Name) else []
            for each in (given, *named):
                if (found := self._constants.keys(each).get(name)) is not None:
                    return found
        return None

    def _assigned(self, name: str) -> list[ast.expr]:
        """What is assigned to a variable of that name, anywhere."""
        return [
            node.value
            for node in self._nodes
            if isinstance(node, ast.Assign) and any(isinstance(to, ast.Name) and to.id == name for to in node.targets)
        ][:MOST]

    def _passed_on(self, call: ast.Call, value: ast.expr, name: str) -> ast.expr | None:
        """`def ask(**more): create(**more)`, and then `ask(tools=…)`."""
        function = self._within.get(id(call))
        if function is None or function.args.kwarg is None or getattr(value, "id", "") != function.args.kwarg.arg:
            return None
        return next(
            (given for each in self._named.get(function.name, ()) if (given := self._keyword(each, name))), None
        )

    def _worth(self, value: ast.expr | None, call: ast.Call) -> bool:
        """Whether the expression is something else than nothing."""
        match value:
            case None | ast.Constant(value=None):
                return False
            case ast.List(elts=[]) | ast.Tuple(elts=[]):
                return False
            case ast.Name(id=name) | ast.Attribute(attr=name) if name in ("NOT_GIVEN", "NotGiven", "omit"):
                return False
            case ast.Name(id=name):
                function = self._within.get(id(call))
                if function is not None and (place := _parameter(function, name)) is not None:
                    return self._passed(function, name, place)
                known = self._constants.given(name)
                return known is None or known is value or self._constants.grows(name) or self._worth(known, call)
        return True

    def _passed(self, function: ast.FunctionDef | ast.AsyncFunctionDef, name: str, place: int) -> bool:
        """Whether the function's parameter is something by default or in some call."""
        default = self._constants.given(name)
        if default is not None and self._worth_alone(default):
            return True
        return any(map(self._worth_alone, self._given_to(function, name, place)))

    def _given_to(self, function: ast.FunctionDef | ast.AsyncFunctionDef, name: str, place: int) -> Iterator[ast.expr]:
        """What the function's calls give for its parameter."""
        method = bool(function.args.args) and function.args.args[0].arg in ("self", "cls")
        for call in self._named.get(function.name, ()):
            given = self._keyword(call, name)
            if given is None and len(call.args) > place - method >= 0:
                given = call.args[place - method]
            if given is not None:
                yield given

    def _worth_alone(self, value: ast.expr) -> bool:
        empty = isinstance(value, ast.List | ast.Tuple) and not value.elts
        return not empty and not (isinstance(value, ast.Constant) and value.value is None)

    # --- where it is asked -------------------------------------------------------------------------------------------

    def _endpoints(self) -> Iterator[Endpoint]:
        named = list(_distinct(self._named_endpoints()))
        yield from named[:MOST]
        if not named:
            yield from list(_distinct(self._loose_endpoints()))[:MOST]

    def _named_endpoints(self) -> Iterator[Endpoint]:
        for call in self._calls:
            for name in ("base_url", "openai_api_base", "api_base", "openai_base_url"):
                if (value := self._keyword(call, name)) is None:
                    spread = [each.value for each in call.keywords if each.arg is None]
                    value = next(
                        (each for each in (self._constants.keys(more).get(name) for more in spread) if each), None
                    )
                yield from self._endpoint(value, f"{name} of {_last(call.func)}")
            if self._asks(call) or _last(call.func) == "APIClient":
                values = [*call.args[:2], self._keyword(call, "url"), self._keyword(call, "api_server_url")]
                for value in values:
                    yield from self._endpoint(value, f"{_last(call.func)}(…)")
        for node in self._nodes:
            match node:
                case ast.Assign(targets=[ast.Attribute(attr="base_url" | "api_base" as name)], value=value):
                    yield from self._endpoint(value, name)
                case ast.Assign(targets=[ast.Subscript(slice=ast.Constant(value=str() as name))], value=value):
                    if name in ("OPENAI_BASE_URL", "OPENAI_API_BASE"):
                        yield from self._endpoint(value, name)

    def _loose_endpoints(self) -> Iterator[Endpoint]:
        """Any URL in the script, where no client's is told."""
        for node in self._nodes:
            if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str)):
                text = self._constants.text(node) or ""
                if text.startswith(("http://", "https://")) and " " not in text.strip():
                    for found in self._endpoint(node, "a URL in the script"):
                        if found.local or "/v1" in found.path:
                            yield found

    def _endpoint(self, value: ast.expr | None, how: str) -> Iterator[Endpoint]:
        text = self._constants.text(value) if value is not None else None
        try:
            parts = urlsplit((text or "").strip())
            host, port = parts.hostname or "", parts.port
        except ValueError:
            return
        if value is None or parts.scheme not in ("http", "https") or not host or UNKNOWN in parts.netloc:
            return
        known = {"http": 80, "https": 443}[parts.scheme]
        path = shown(parts.path.replace(UNKNOWN, "…"))
        yield Endpoint(
            scheme=parts.scheme, host=shown(host), port=port or known, path=path, line=value.lineno, how=shown(how)
        )

    def _no_base_url(self, endpoints: tuple[Endpoint, ...]) -> int:
        clients = [call for name in ("OpenAI", "AsyncOpenAI") for call in self._named.get(name, ())]
        if endpoints or any(keyword.arg in (None, "base_url") for call in clients for keyword in call.keywords):
            return 0
        return clients[0].lineno if clients else 0

    # --- what else it does -------------------------------------------------------------------------------------------

    def _commands(self) -> Iterator[CommandText]:
        for call in self._calls:
            if _last(call.func) not in _STARTERS or not (call.args or call.keywords):
                continue
            first = call.args[0] if call.args else self._keyword(call, "args")
            words = self._constants.words(first)
            if words is None and isinstance(first, ast.Call) and _last(first.func) == "split":
                first = first.args[0] if first.args else first
            text = None if words is not None else self._constants.text(first)
            if words is not None:
                together = tuple(
                    Word(text=each.replace(UNKNOWN, "…"), line=line, unknown=UNKNOWN in each) for each, line in words
                )
                if any("lmdeploy" in word.text for word in together) or any(
                    "api_server" in word.text for word in together
                ):
                    yield CommandText(
                        line=call.lineno, text=" ".join(word.text for word in together), words=_module(together)
                    )
            elif text and "lmdeploy" in text:
                yield CommandText(line=call.lineno, text=text.replace(UNKNOWN, "…"))

    def _imports(self) -> Iterator[str]:
        for node in self._nodes:
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield from [node.module] if node.module else [alias.name for alias in node.names]

    def _uses(self, module: str) -> bool:
        return any(name.split(".")[0] == module for name in self._imports())

    def _texts(self) -> dict[str, str]:
        """Names that stand for a text, for a notebook's shell commands."""
        names = [node.id for node in self._nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
        found = {name: self._constants.text(self._constants.given(name)) for name in dict.fromkeys(names[:MOST])}
        return {name: text for name, text in found.items() if text and UNKNOWN not in text and len(text) < 500}

    def _keyword(self, call: ast.Call, name: str) -> ast.expr | None:
        return next((keyword.value for keyword in call.keywords if keyword.arg == name), None)

    def _chain(self, node: ast.expr, depth: int = 0) -> list[str]:
        """`client.chat.completions.create` as its names; a name that stands for such a chain is followed."""
        names: list[str] = []
        while isinstance(node, ast.Attribute):
            names.insert(0, node.attr)
            node = node.value
            if len(names) > 20:
                return names
        if isinstance(node, ast.Name):
            known = self._constants.given(node.id)
            if isinstance(known, ast.Attribute) and depth < 5:
                return self._chain(known, depth + 1) + names
            names.insert(0, node.id)
        return names


_STARTERS = frozenset(
    {"run", "Popen", "call", "check_call", "check_output", "getoutput", "system", "popen", "create_subprocess_exec"}
    | {"create_subprocess_shell", "execvp", "spawn"}
)


def parses(source: str) -> bool:
    """Whether it is Python."""
    try:
        parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def parse(source: str) -> ast.Module:
    with _PARSING, warnings.catch_warnings():  # Python warns of a student's "\\d" on our standard error
        warnings.simplefilter("ignore")
        return ast.parse(source)


def notebook_python(code: str) -> str:
    """A notebook's cell as Python: what is IPython's own becomes `pass`, in as many lines."""
    lines = []
    goes_on = False
    for line in code.split("\n"):
        plain = line.lstrip()
        if goes_on or plain.startswith(("!", "%", "?")):
            lines.append("" if goes_on else line[: len(line) - len(plain)] + "pass")
            goes_on = line.rstrip().endswith("\\")
        else:
            before, mark, _ = line.partition("= !")
            lines.append(f"{before}= None" if mark and before.strip().isidentifier() else line)
    return "\n".join(lines)


def _last(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _follow(chain: list[str], first: str, second: str) -> bool:
    return any(one == first and other == second for one, other in itertools.pairwise(chain))


def _parameter(function: ast.FunctionDef | ast.AsyncFunctionDef, name: str) -> int | None:
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return next((place for place, argument in enumerate(arguments) if argument.arg == name), None)


def _distinct(endpoints: Iterator[Endpoint]) -> Iterator[Endpoint]:
    seen: set[tuple[str, int]] = set()
    for endpoint in endpoints:
        if (endpoint.host, endpoint.port) not in seen:
            seen.add((endpoint.host, endpoint.port))
            yield endpoint


def _module(words: tuple[Word, ...]) -> tuple[Word, ...]:
    """`[sys.executable, "-m", "lmdeploy", …]` begins with something that only running tells."""
    if words and words[0].unknown:
        return (Word(text="python", line=words[0].line), *words[1:])
    return words
