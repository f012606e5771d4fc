"""Python scripts of students, read and not run: what they ask for, where, and what they start."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab3.grading.python_source import PythonFacts, notebook_python, read_python

CHAT = """
from openai import OpenAI
client = OpenAI(api_key="none", base_url="http://0.0.0.0:23333/v1")
name = client.models.list().data[0].id
print(client.chat.completions.create(model=name, messages=[], temperature=0.8).choices[0].message.content)
"""
TOOLS = CHAT.replace("messages=[]", "messages=[], tools=[{'type': 'function'}]")


def asks(source: str) -> list[bool]:
    """For each request: whether it has tools."""
    return [ask.tools for ask in read_python(source).asks]


def servers(source: str) -> list[tuple[str, int, str]]:
    return [(each.host, each.port, each.path) for each in read_python(source).endpoints]


def test_the_tutorials_chat_script_asks_without_tools():
    facts = read_python(CHAT)

    assert asks(CHAT) == [False]
    assert servers(CHAT) == [("0.0.0.0", 23333, "/v1")]
    assert (facts.asks[0].line, facts.asks[0].how) == (5, "calls chat.completions.create")
    assert (facts.models, facts.fault) == ((), "")


CREATE = "client.chat.completions.create(model=m, messages=q, "


@pytest.mark.parametrize(
    "source",
    [
        CREATE + "tools=tools)",
        CREATE + "tools=[{'type': 'function'}], stream=True)",
        "import openai\nopenai.ChatCompletion.create(messages=q, functions=f)",
        "more = {'tools': t}\n" + CREATE + "**more)",
        "more = dict(temperature=0)\nmore['tools'] = t\n" + CREATE + "**more)",
        "more = {}\nmore.update(tools=t)\n" + CREATE + "**more)",
        "more = {'top_p': 1}\n" + CREATE + "**(more | {'tools': t}))",
        "def more():\n    return {'tools': t}\n" + CREATE + "**more())",
        "tools = []\ntools.append({'type': 'function'})\n" + CREATE + "tools=tools)",
        "def ask(q, tools=None):\n    return " + CREATE + "tools=tools)\nask(1, tools=t)",
        "def ask(q, tools=None):\n    return " + CREATE + "tools=tools)\nask(1, t)",
        "class A:\n    def ask(self, q, tools=None):\n        return " + CREATE + "tools=tools)\nA().ask(1, t)",
        "def ask(**more):\n    return " + CREATE + "**more)\nask(tools=t)",
        "create = client.chat.completions.create\ncreate(tools=t)",
        "c = client.chat.completions\nc.create(tools=t)",
        "client.beta.chat.completions.parse(tools=t)",
        "import requests\nrequests.post('http://localhost:1/v1/chat/completions', json={'tools': t})",
        "body = {}\nbody['tools'] = t\nrequests.post(f'{base}/chat/completions', data=json.dumps(body))",
        "import httpx\nhttpx.Client().post(url='/v1/chat/completions', json=dict(tools=t))",
        "from langchain_openai import ChatOpenAI\nChatOpenAI(base_url=u).bind_tools(t)",
        "from lmdeploy.serve.openai.api_client import APIClient\nAPIClient(u).chat_completions_v1(messages=q, tools=t)",
    ],
)
def test_a_request_with_tools_is_seen_however_they_are_passed(source: str):
    assert asks(source) == [True]


@pytest.mark.parametrize(
    "source",
    [
        CREATE + ")",
        CREATE + "tools=None)",
        CREATE + "tools=[])",
        CREATE + "tools=NOT_GIVEN)",
        "tools = []\n" + CREATE + "tools=tools)",
        "def ask(q, tools=None):\n    return " + CREATE + "tools=tools)\nask(1)",
        "'''tools=[1]'''\n# tools=[1]\n" + CREATE + "temperature=0)",
        "import requests\nrequests.post('http://localhost:1/v1/chat/completions', json={'messages': q})",
    ],
)
def test_a_request_without_tools_is_no_function_call(source: str):
    assert asks(source) == [False]


@pytest.mark.parametrize(
    "source",
    [
        "print('chat.completions.create(tools=tools)')",
        "from openai import OpenAI\nclient = OpenAI()",
        "client.completions.create(prompt='x')",
        "requests.post('http://localhost:1/v1/completions', json={})",
        "from lmdeploy import pipeline\npipe = pipeline('/m')",
    ],
)
def test_other_code_asks_for_nothing(source: str):
    assert asks(source) == []


@pytest.mark.parametrize(
    "source",
    [
        "OpenAI(base_url='http://127.0.0.1:8000/v1')",
        "import openai\nopenai.base_url = 'http://127.0.0.1:8000/v1'",
        "import openai\nopenai.api_base = 'http://127.0.0.1:8000/v1'",
        "HOST, PORT = '127.0.0.1', 8000\nOpenAI(base_url=f'http://{HOST}:{PORT}/v1')",
        "HOST = '127.0.0.1'\nOpenAI(base_url='http://' + HOST + ':8000/v1')",
        "OpenAI(base_url='http://%s:%d/v1' % ('127.0.0.1', 8000))",
        "OpenAI(base_url='http://{}:{}/v1'.format('127.0.0.1', 8000))",
        "OpenAI(base_url='http://{h}:8000/v1'.format(h='127.0.0.1'))",
        "import os\nOpenAI(base_url=os.environ.get('URL', 'http://127.0.0.1:8000/v1'))",
        "import os\nOpenAI(base_url=os.getenv('URL') or 'http://127.0.0.1:8000/v1')",
        "import os\nos.environ['OPENAI_BASE_URL'] = 'http://127.0.0.1:8000/v1'\nOpenAI()",
        "config = {'base_url': 'http://127.0.0.1:8000/v1'}\nOpenAI(**config)",
        "config = {'url': 'http://127.0.0.1:8000/v1'}\nOpenAI(base_url=config['url'])",
        "class Config:\n    URL = 'http://127.0.0.1:8000/v1'\nOpenAI(base_url=Config.URL)",
        "class A:\n    def __init__(self, base_url='http://127.0.0.1:8000/v1'):\n        self.base_url = base_url\n"
        "        self.client = OpenAI(base_url=self.base_url)",
        "class A:\n    def __init__(self, host='127.0.0.1', port=8000):\n        self.host, self.port = host, port\n"
        "        self.client = OpenAI(base_url=f'http://{self.host}:{self.port}/v1')",
        "p = argparse.ArgumentParser()\np.add_argument('--base-url', default='http://127.0.0.1:8000/v1')\n"
        "a = p.parse_args()\nOpenAI(base_url=a.base_url)",
        "p = argparse.ArgumentParser()\np.add_argument('-p', '--port', type=int, default=8000)\n"
        "a = p.parse_args()\nOpenAI(base_url=f'http://127.0.0.1:{a.port}/v1')",
        "from langchain_openai import ChatOpenAI\nChatOpenAI(openai_api_base='http://127.0.0.1:8000/v1')",
        "url = pick()\nOTHER = 'http://127.0.0.1:8000/v1'\nOpenAI(base_url=url)",
    ],
)
def test_where_it_asks_is_told_by_constants(source: str):
    assert servers(source) == [("127.0.0.1", 8000, "/v1")]


def test_several_servers_are_all_told():
    source = "a = OpenAI(base_url='http://localhost:1/v1')\nb = OpenAI(base_url='https://api.example.com/v1')"

    assert servers(source) == [("localhost", 1, "/v1"), ("api.example.com", 443, "/v1")]
    assert [each.local for each in read_python(source).endpoints] == [True, False]


def test_a_name_that_is_given_two_values_tells_nothing():
    assert servers("u = 'x'\nu = pick()\nOpenAI(base_url=u)") == []


def test_a_client_that_is_not_told_the_server_is_told():
    assert read_python("from openai import OpenAI\nc = OpenAI(api_key='x')").no_base_url == 2
    assert read_python(CHAT).no_base_url == 0


def test_the_model_that_a_script_asks_for_by_name_is_told():
    assert read_python("M = 'internlm2'\nclient.chat.completions.create(model=M)").models == ("internlm2",)


WORDS = "'lmdeploy', 'serve', 'api_server', 'm', '--server-port', '8000'"
LINE = "lmdeploy serve api_server m --server-port 8000"


@pytest.mark.parametrize(
    "source",
    [
        f"subprocess.run([{WORDS}])",
        f"subprocess.Popen(args=[{WORDS}])",
        f"subprocess.run([sys.executable, '-m', {WORDS}])",
        f"subprocess.run(' '.join([{WORDS}]), shell=True)",
        f"subprocess.run(shlex.split('{LINE}'))",
        f"os.system('{LINE}')",
        "subprocess.run(['lmdeploy', 'serve', 'api_server', 'm', '--server-port', str(8000)])",
        "cmd = ['lmdeploy', 'serve']\nsubprocess.Popen(cmd + ['api_server', 'm', '--server-port', '8000'])",
        "more = ['--server-port', '8000']\nsubprocess.run(['lmdeploy', 'serve', 'api_server', 'm', *more])",
        "port = 8000\nos.system(f'lmdeploy serve api_server m --server-port {port}')",
    ],
)
def test_a_command_that_python_starts_is_found(source: str):
    (command,) = read_python(source).commands

    assert command.text.endswith(LINE)


def test_ipythons_own_lines_are_no_python_and_keep_their_place():
    cell = "!pip install openai \\\n  --quiet\n%time x = 1\nfiles = !ls\nif x:\n    !ls\nprint(x)"

    assert notebook_python(cell) == "pass\n\npass\nfiles = None\nif x:\n    pass\nprint(x)"


# --- hostile scripts ----------------------------------------------------------------------------------------------


NO_PYTHON = {
    "half a function": "def f(:",
    "a zero byte": "\0",
    "nine thousand brackets": "(" * 9000,
    "minus minus minus": "-" * 200_000 + "1",
    "a chain without end": "a" + ".b" * 100_000,
    "half a character": "\ud800",
}


@pytest.mark.parametrize("name", NO_PYTHON)
def test_what_is_no_python_is_told_and_does_no_harm(name: str):
    facts = read_python(NO_PYTHON[name])

    assert facts.fault.startswith("no Python")
    assert facts == PythonFacts(fault=facts.fault)


DOUBLING = "\n".join(f"n{number} = n{number + 1} + n{number + 1}" for number in range(40)) + "\nn40 = 'http://x'\n"
HOSTILE = {
    "names that double each other": DOUBLING + "OpenAI(base_url=n0)\n",
    "in every request": DOUBLING + "client.chat.completions.create(**n0)\n" * 20_000,
    "in every command": DOUBLING + "subprocess.run(n0)\n" * 20_000,
    "names in a circle": "a = a\nb = c\nc = b\nOpenAI(base_url=b)\nclient.chat.completions.create(**b, tools=a)\n",
    "a number too long to be printed": f"OpenAI(base_url=f'http://h:{{0x{'f' * 9000}}}/v1')",
    "a wrong escape": "OpenAI(base_url='http://h\\d/v1')",
    "a long address": "OpenAI(base_url='" + "http://x" * 100_000 + "')",
    "functions in functions": "".join(" " * depth + f"def f{depth}():\n" for depth in range(90)) + " " * 90 + "f(f())",
    "a long list": "x = [" + "1," * 400_000 + "]\nsubprocess.run(x)\nsubprocess.run(x)",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_no_script_is_thought_about_for_ever(name: str):
    facts = read_python(HOSTILE[name])

    assert facts.fault == ""
    assert len(facts.asks) <= 100
    assert len(facts.commands) <= 100


CODE = """OpenAI( base_url= http:// 'http://h:1/v1' f' { } % .format( client.chat.completions.create( tools= ** ) ( ] [
, : = | def f a b x lambda os.environ.get( requests.post( subprocess.run( 'lmdeploy' 'serve' 'api_server' json= None"""


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([*CODE.split(), " ", "\n", "\n  "]) | st.text(max_size=4), max_size=30).map("".join))
def test_no_text_makes_reading_a_script_fail(source: str):
    read_python(source)
    notebook_python(source)


def test_reading_a_script_warns_nobody(recwarn: pytest.WarningsRecorder):
    read_python("x = '\\d'\nassert (1, 'always')\n")

    assert list(recwarn) == []
