"""Through its doors a script reaches the model server where it expects it, and nothing is lost or held up."""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import socketserver
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lab3.errors import UsageError
from lab3.grading import sandbox_doors
from lab3.grading.sandbox import Door
from tests.sandbox.world import serving

pytestmark = pytest.mark.xdist_group("sandbox")

CHAT = """
    from openai import OpenAI

    for url in URLS:
        client = OpenAI(api_key="none", base_url=url)
        model = client.models.list().data[0].id
        answer = client.chat.completions.create(model=model, messages=[{"role": "user", "content": "Who are you?"}])
        print(answer.choices[0].message.content)
    """


class ModelServer(BaseHTTPRequestHandler):
    """As much of an OpenAI server as the client needs. It echoes the question."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer({"object": "list", "data": [{"id": "internlm2_5", "object": "model"}]})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = f"{asked['model']}: {asked['messages'][-1]['content']}"
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        self._answer({"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]})

    def _answer(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass

    def address_string(self) -> str:
        return "a Unix socket"


@pytest.fixture
def model_server(tmp_path):
    with serving(ModelServer, tmp_path / "model.sock") as path:
        yield path


# --- addresses ----------------------------------------------------------------------------------------------------


def test_the_openai_client_reaches_the_server_at_the_tutorials_address_and_at_localhost(world, model_server):
    urls = [f"http://{host}:23333/v1" for host in ("0.0.0.0", "localhost", "127.0.0.1", "[::1]")]

    ran = world.run(CHAT, URLS=urls, doors=(Door(host="0.0.0.0", port=23333, socket=model_server),))

    assert ran.stderr == ""
    assert ran.stdout == "internlm2_5: Who are you?\n" * 4
    assert ran.door_trouble == ()


def test_the_server_at_another_machines_address_name_and_port(world, model_server):
    hosts = ("10.140.0.3", "192.168.1.7", "gpu-box.example.com")

    ran = world.run(
        CHAT,
        URLS=[f"http://{host}:80/v1" for host in hosts],
        doors=tuple(Door(host=host, port=80, socket=model_server) for host in hosts),
    )

    assert ran.stderr == ""
    assert ran.stdout == "internlm2_5: Who are you?\n" * 3


def test_two_doors_lead_to_two_servers(world, model_server, echo):
    ran = world.run(
        """
        import socket, urllib.request
        with socket.create_connection(("localhost", 8000)) as client:
            client.sendall(b"echo")
            print(client.recv(10))
        print(urllib.request.urlopen("http://localhost:8001/v1/models").status)
        """,
        doors=(
            Door(host="localhost", port=8000, socket=echo),
            Door(host="localhost", port=8001, socket=model_server),
        ),
    )

    assert ran.stdout == "b'echo'\n200\n"


def test_a_port_without_a_door_is_closed(world, echo):
    ran = world.run(
        """
        import socket
        try:
            socket.create_connection(("localhost", 23334))
        except OSError as error:
            print(error.strerror)
        """,
        doors=(Door(host="localhost", port=23333, socket=echo),),
    )

    assert ran.stdout == "Connection refused\n"


def test_a_script_cannot_take_a_doors_place(world, echo):
    ran = world.run(
        "import socket\ntry: socket.create_server(('127.0.0.1', 23333))\nexcept OSError as error: print('in use')",
        doors=(Door(host="localhost", port=23333, socket=echo),),
    )

    assert ran.stdout == "in use\n"


@pytest.mark.parametrize(
    ("host", "port"),
    [
        ("localhost", 0),
        ("localhost", 65536),
        ("a b", 80),
        ("x\n10.0.0.1 y", 80),
        ("2001:db8::1", 80),
        ("224.0.0.1", 80),
        ("", 1),
    ],
)
def test_doors_that_cannot_be(world, echo, host, port):
    with pytest.raises(UsageError, match="no door at") as caught:
        world.run("pass", doors=(Door(host=host, port=port, socket=echo),))

    assert caught.value.why


def test_one_port_leads_to_one_server(world, echo, model_server):
    doors = (Door(host="localhost", port=80, socket=echo), Door(host="10.0.0.1", port=80, socket=model_server))

    with pytest.raises(UsageError, match="no door at"):
        world.run("pass", doors=doors)


def test_the_recording_proxy_behind_a_door_sees_what_the_script_really_asks(world, tmp_path):
    from lab3.grading.proxy import RecordingProxy

    server = ThreadingHTTPServer(("127.0.0.1", 0), ModelServer)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        with RecordingProxy(f"http://127.0.0.1:{server.server_port}", socket=tmp_path / "proxy.sock") as proxy:
            ran = world.run(
                CHAT,
                URLS=["http://0.0.0.0:23333/v1"],
                doors=(Door(host="0.0.0.0", port=23333, socket=tmp_path / "proxy.sock"),),
            )
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

    assert ran.stdout == "internlm2_5: Who are you?\n"
    assert [exchange.path for exchange in proxy.exchanges] == ["/v1/models", "/v1/chat/completions"]
    assert json.loads(proxy.exchanges[1].request_body)["messages"][0]["content"] == "Who are you?"


# --- traffic ------------------------------------------------------------------------------------------------------


def test_what_is_streamed_arrives_piece_by_piece(world, tmp_path):
    """The server sends the next piece only when it hears that the last one has arrived."""

    class Pieces(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            for number in range(100):
                self.request.sendall(f"piece {number}\n".encode())
                if not self.request.recv(1):
                    return

    with serving(Pieces, tmp_path / "pieces.sock") as path:
        ran = world.run(
            """
            import socket
            with socket.create_connection(("localhost", 23333)) as client:
                for line in client.makefile():
                    client.sendall(b".")
            print(line.strip())
            """,
            doors=(Door(host="localhost", port=23333, socket=path),),
        )

    assert ran.stdout == "piece 99\n"


def test_much_data_in_both_directions_at_once_arrives_whole(world, echo):
    ran = world.run(
        """
        import hashlib, os, socket, threading
        data = bytes(range(256)) * (40 << 10)
        with socket.create_connection(("localhost", 23333)) as client:
            def send():
                client.sendall(data)
                client.shutdown(socket.SHUT_WR)
            threading.Thread(target=send).start()
            got = hashlib.sha256()
            while part := client.recv(1 << 16):
                got.update(part)
            print(got.hexdigest())
        """,
        doors=(Door(host="localhost", port=23333, socket=echo),),
    )

    assert ran.stdout.strip() == hashlib.sha256(bytes(range(256)) * (40 << 10)).hexdigest()


def test_a_slow_reader_gets_the_last_of_an_answer_whose_server_has_hung_up(tmp_path):
    """The kernel takes little at a time here, so lab3 has something left to send when the server has ended."""

    class Long(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.sendall(bytes(200_000))

    def read(port: int) -> int:
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.shutdown(socket.SHUT_WR)  # no more questions
            count = 0
            while part := client.recv(1 << 12):
                count += len(part)
                time.sleep(0.002)
        return count

    async def talk(listener: socket.socket, to: Path) -> set[int]:
        door = asyncio.create_task(
            sandbox_doors.serve(listener, to=to, slots=asyncio.Semaphore(1), trouble=lambda what: pytest.fail(what))
        )
        try:
            return {await asyncio.to_thread(read, listener.getsockname()[1]) for _ in range(3)}
        finally:
            door.cancel()

    with serving(Long, tmp_path / "long.sock") as path, socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        assert asyncio.run(talk(listener, path)) == {200_000}


def test_more_connections_than_are_served_at_once_wait(world, tmp_path):
    now, most, lock, full = [0], [0], threading.Lock(), threading.Event()

    class Counting(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with lock:
                now[0] += 1
                most[0] = max(most[0], now[0])
                if now[0] == 5:
                    full.set()
            assert full.wait(20), "five are served at once"
            self.request.recv(1)
            with lock:
                now[0] -= 1
            self.request.sendall(b"x")

    with serving(Counting, tmp_path / "counting.sock") as path:
        ran = world.run(
            """
            import socket
            clients = [socket.create_connection(("localhost", 23333)) for _ in range(30)]
            answers = 0
            for client in clients:
                client.sendall(b"x")
                answers += len(client.recv(1))
                client.close()
            print(answers)
            """,
            doors=(Door(host="localhost", port=23333, socket=path),),
            connections=5,
        )

    assert ran.stdout == "30\n"
    assert most[0] == 5


def test_a_script_that_hangs_up_in_the_middle_disturbs_nobody(world, echo):
    ran = world.run(
        """
        import socket, struct
        for number in range(20):
            client = socket.create_connection(("localhost", 23333))
            client.sendall(b"x" * 100_000)
            if number % 2:  # by a reset
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
        with socket.create_connection(("localhost", 23333)) as client:
            client.sendall(b"hello")
            print(client.recv(10))
        """,
        doors=(Door(host="localhost", port=23333, socket=echo),),
    )

    assert ran.stdout == "b'hello'\n"
    assert ran.door_trouble == ()


def test_a_server_that_is_gone_is_told_and_is_not_the_scripts_fault(world, tmp_path):
    ran = world.run(
        """
        import socket
        with socket.create_connection(("localhost", 23333)) as client:
            print(client.recv(10))
        """,
        doors=(Door(host="localhost", port=23333, socket=tmp_path / "nobody.sock"),),
    )

    assert ran.stdout == "b''\n"
    (trouble,) = ran.door_trouble
    assert "nobody.sock" in trouble


def test_many_scripts_at_once_each_have_their_own_doors(world, tmp_path):
    def one(number: int) -> str:
        class Named(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                self.request.sendall(f"server {number}".encode())

        with serving(Named, tmp_path / f"{number}.sock") as path:
            ran = world.run(
                "import socket; print(socket.create_connection(('localhost', 23333)).makefile().read())",
                name=f"{number}.py",
                doors=(Door(host="localhost", port=23333, socket=path),),
            )
        return ran.stdout

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(one, range(24)))

    assert answers == [f"server {number}\n" for number in range(24)]
