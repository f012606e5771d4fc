"""There is no network inside but lab3's doors; see test_doors.py for those."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.xdist_group("sandbox")

CONNECT = """
    import os, socket
    with socket.socket(FAMILY, socket.SOCK_STREAM) as client:
        client.settimeout(5)
        try:
            client.connect(TARGET)
            print("connected", client.recv(10))
        except OSError as error:
            print(os.strerror(error.errno) if error.errno else error)
    """
INET, UNIX = 2, 1


def test_the_internet(world):
    ran = world.run(CONNECT, FAMILY=INET, TARGET=("192.0.2.1", 80))  # a TEST-NET address: nobody's

    assert ran.stdout == "Network is unreachable\n"


def test_the_internet_by_datagrams_and_over_ipv6(world):
    ran = world.run(
        """
        import socket
        for family, address in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
            try:
                socket.socket(family, socket.SOCK_DGRAM).sendto(b"x", (address, 53))
                print("sent")
            except OSError as error:
                print(error.strerror)
        """
    )

    assert ran.stdout == "Network is unreachable\n" * 2


def test_names_are_not_resolved(world):
    ran = world.run(
        "import socket\ntry: print(socket.getaddrinfo('example.com', 80))\nexcept OSError as error: print('no')"
    )

    assert ran.stdout == "no\n"


def test_other_ports_of_this_machine(world):
    assert world.outside(CONNECT, FAMILY=INET, TARGET=("127.0.0.1", world.port)).startswith("connected")
    assert world.reached.pop() == "TCP"

    for host in ("127.0.0.1", "0.0.0.0", "localhost"):
        ran = world.run(CONNECT, FAMILY=INET, TARGET=(host, world.port))
        assert ran.stdout == "Connection refused\n"


def test_abstract_sockets_of_this_machine(world):
    target = f"\0{world.abstract}"
    assert world.outside(CONNECT, FAMILY=UNIX, TARGET=target).startswith("connected")
    assert world.reached.pop() == "abstract"

    ran = world.run(CONNECT, FAMILY=UNIX, TARGET=target)

    assert ran.stdout == "Connection refused\n"


def test_sockets_in_this_machines_folders(world):
    for path in world.sockets:
        if path.exists():
            assert world.outside(CONNECT, FAMILY=UNIX, TARGET=str(path)).startswith("connected")
            assert world.reached.pop() == str(path)

    for path in (*world.sockets, "/run/docker.sock", "/var/run/docker.sock", "/run/dbus/system_bus_socket"):
        ran = world.run(CONNECT, FAMILY=UNIX, TARGET=str(path))
        assert ran.stdout == "No such file or directory\n"


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(40, id="vsock"),
        pytest.param(17, id="packet"),
        pytest.param(38, id="alg"),
        pytest.param(31, id="bt"),
    ],
)
def test_networks_that_namespaces_do_not_cover(world, family):
    ran = world.run("import socket; socket.socket(FAMILY, socket.SOCK_STREAM)", FAMILY=family)

    assert "Address family not supported" in ran.stderr


def test_interfaces_other_than_its_own_loopback_and_raw_sockets(world):
    ran = world.run(
        """
        import socket
        print([name for _, name in socket.if_nameindex()])
        socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        """
    )

    assert ran.stdout == "['lo']\n"
    assert "PermissionError" in ran.stderr


def test_what_one_script_listens_on_no_other_one_reaches(world):
    from concurrent.futures import ThreadPoolExecutor

    world.write(
        """
        import socket, time
        server = socket.create_server(("127.0.0.1", 5555))
        time.sleep(1.5)
        """,
        name="server.py",
    )
    client = """
        import socket, time
        for _ in range(10):
            try:
                socket.create_connection(("127.0.0.1", 5555))
                print("connected")
            except OSError:
                time.sleep(0.1)
        """
    with ThreadPoolExecutor() as pool:
        server = pool.submit(world.run, (world.folder / "server.py").read_text(), name="server.py")
        ran = world.run(client, name="client.py")

    assert ran.stdout == ""
    assert server.result().outcome == "exited"
