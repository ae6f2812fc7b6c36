"""What is known of a link's speed from measurements that are too high, too low or only bounds."""

from __future__ import annotations

import socket

from deepflow.intermediates.links import Links, delivery_rate


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
            for _ in range(20):
                here.sendall(b"x" * 10_000)
                there.recv(10_000, socket.MSG_WAITALL)
            found = delivery_rate(here)
            assert found is None or found[0] > 1e5
    pair = socket.socketpair()
    assert delivery_rate(pair[0]) is None
    pair[0].close()
    pair[1].close()
