"""What is known of a link's speed from measurements that are too high, too low or only bounds."""

from __future__ import annotations

import socket
import threading
import time

from deepflow.intermediates.links import Links, Meter


def test_nothing_is_known_of_a_host_that_was_not_measured():
    assert Links().speed("h") == 0.0


def test_a_few_measurements_of_a_busy_end_do_not_make_a_link_slow():
    links = Links()
    for rate in (100.0, 101.0, 99.0, 20.0, 100.0, 30.0, 102.0):
        links.observe("h", rate)
    assert 99 <= links.speed("h") <= 102


def test_a_link_that_has_become_slow_is_slow():
    links = Links()
    for rate in (100.0, 100.0, *[10.0] * 16):
        links.observe("h", rate)
    assert links.speed("h") == 10.0


def test_a_bound_only_raises():
    links = Links()
    links.observe("h", 100.0)
    assert links.observe("h", 50.0, is_lower_bound=True) == 100.0
    links.observe("h", 300.0, is_lower_bound=True)
    assert links.speed("h") >= 100.0
    assert links.speed("other") == 0.0


def test_hosts_are_forgotten_beyond_a_number():
    links = Links()
    for number in range(5_000):
        links.observe(str(number), 1.0)
    assert links.speed("0") == 0.0
    assert links.speed("4999") == 1.0


def test_the_kernel_says_how_fast_a_socket_was():
    with socket.create_server(("127.0.0.1", 0)) as server:
        here = socket.create_connection(server.getsockname())
        there, _ = server.accept()
        with here, there:
            here.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
            there.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
            reader = threading.Thread(target=slow_reader, args=(there,))
            meter = Meter(here)
            assert meter.read() is None
            reader.start()
            here.sendall(bytes(4 << 20))
            found = meter.read()
            here.shutdown(socket.SHUT_WR)
            reader.join()
    assert found is None or 1e5 < found[0] < 1e9


def slow_reader(sock: socket.socket) -> None:
    while sock.recv(1 << 17):
        time.sleep(0.001)


def test_a_socket_without_tcp_tells_nothing():
    here, there = socket.socketpair()
    with here, there:
        meter = Meter(here)
        here.sendall(b"x" * 10_000)
        assert meter.read() is None
