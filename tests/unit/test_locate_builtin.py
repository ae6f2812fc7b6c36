"""The built-in resolvers: hosts, paths, HDFS by WebHDFS, buckets by S3."""

from __future__ import annotations

import logging
import os
import socket
import sys
from importlib import import_module
from pathlib import Path

import pytest

from deepflow.decide.location import Match, WorkerPlace, match, nearest_workers
from deepflow.errors import ConfigurationError
from deepflow.hints import Near
from deepflow.locate import hosts
from deepflow.locate.hdfs import HdfsResolver, block_locations
from deepflow.locate.hosts import HostResolver, lookup, this_machine
from deepflow.locate.locator import Locator
from deepflow.locate.object_store import S3Resolver
from deepflow.locate.paths import PathResolver, is_on_network
from deepflow.locate.shards import shards
from deepflow.locate.storage import filesystem, safe_text
from tests.webhdfs import WebHdfs

# -- hosts -------------------------------------------------------------------------------------


def test_this_machine_is_known_by_its_name_and_by_its_addresses() -> None:
    own = this_machine()
    assert {"localhost", "127.0.0.1", socket.gethostname().lower()} <= own
    assert lookup("localhost") == lookup("127.0.0.1") == lookup("tcp://127.0.0.1:8786")
    assert not any(name.startswith("fe80") for name in own)


def test_a_worker_on_this_machine_is_near_localhost_and_near_its_name() -> None:
    with Locator() as locator:
        place = locator.place("tcp://127.0.0.1:4711", {"zone": "eu"})
        assert place.zone == "eu"
        for host in ("localhost", socket.gethostname(), "tcp://127.0.0.1:1"):
            location = locator.locate(Near("host", host))
            assert location is not None
            assert match(location, place) == Match("host", 1.0)
        exactly = locator.locate(Near.of("tcp://127.0.0.1:4711"))
        assert exactly is not None
        assert match(exactly, place) == Match("process", 1.0)


def test_names_that_dns_knows_bring_their_addresses(monkeypatch) -> None:
    def answers(name: str, *args: object, **kwargs: object) -> list[tuple[object, ...]]:
        assert name == "dn7"
        return [(2, 1, 6, "dn7.example.org", ("10.9.0.7", 0)), (2, 1, 6, "", ("10.9.0.8", 0))]

    monkeypatch.setattr(socket, "getaddrinfo", answers)
    location = HostResolver().resolve(Near("host", "DN7."))
    assert location.hosts[0].names == {"dn7", "dn7.example.org", "10.9.0.7", "10.9.0.8"}
    assert match(location, WorkerPlace.of("tcp://10.9.0.8:1")).closeness == "host"
    assert location.workers == ()


def test_a_host_that_dns_does_not_know_is_matched_by_name(monkeypatch, caplog) -> None:
    def unknown(*args: object, **kwargs: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    caplog.set_level(logging.INFO)
    location = HostResolver().resolve(Near("host", "node9"))
    assert location.hosts[0].names == {"node9"}
    assert match(location, WorkerPlace.of("tcp://10.1.1.1:1", {"host": "node9"})).share == 1.0
    assert "matched by its name alone" in caplog.text


def test_a_dns_that_does_not_answer_is_not_waited_for(monkeypatch, caplog) -> None:
    never = hosts.threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: never.wait(30) and [])
    caplog.set_level(logging.INFO)
    assert lookup("node9", timeout_s=0.02) == {"node9"}
    assert "no answer from DNS within 0.02 s" in caplog.text
    never.set()


def test_an_address_is_not_looked_up(monkeypatch) -> None:
    monkeypatch.delattr(socket, "getaddrinfo")
    assert lookup("tcp://192.0.2.77:1") == {"192.0.2.77"}
    assert lookup("2001:db8::7") == {"2001:db8::7"}


# -- paths -------------------------------------------------------------------------------------


def mounts_file(folder: Path, *lines: str) -> str:
    file = folder / "mounts"
    file.write_text("".join(f"{line}\n" for line in ("/dev/vda / ext4 rw 0 0", *lines)))
    return str(file)


def test_a_file_on_this_machines_disk_is_near_this_machine(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes(b"12345")
    location = PathResolver(mounts=mounts_file(tmp_path)).resolve(Near.of(file))
    assert location.n_bytes == 5
    assert match(location, WorkerPlace.of("tcp://127.0.0.1:1")) == Match("host", 1.0)
    folder = PathResolver(mounts=mounts_file(tmp_path)).resolve(Near.of(tmp_path))
    assert folder.hosts
    assert folder.n_bytes is None


@pytest.mark.parametrize(
    "kind", ["nfs", "nfs4", "cifs", "lustre", "ceph", "fuse.sshfs", "fuse.s3fs", "beegfs"]
)
def test_a_file_on_a_network_filesystem_prefers_no_host(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "with space" / "a.csv"
    file.parent.mkdir()
    file.write_bytes(b"12345")
    escaped = str(file.parent).replace(" ", "\\040")
    mounts = mounts_file(tmp_path, f"server:/x {escaped} {kind} rw 0 0")
    location = PathResolver(mounts=mounts).resolve(Near.of(file))
    assert not location
    assert location.n_bytes == 5
    assert not is_on_network(str(tmp_path / "with space too"), mounts=mounts)


def test_the_innermost_and_topmost_mount_counts(tmp_path: Path) -> None:
    inner = tmp_path / "net" / "scratch"
    inner.mkdir(parents=True)
    mounts = mounts_file(
        tmp_path,
        f"auto {tmp_path}/net autofs rw 0 0",
        f"server:/x {tmp_path}/net nfs4 rw 0 0",
        f"/dev/sdb {inner} xfs rw 0 0",
    )
    assert is_on_network(str(tmp_path / "net" / "a"), mounts=mounts)
    assert not is_on_network(str(inner / "a"), mounts=mounts)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "net")
    assert is_on_network(str(link / "a"), mounts=mounts)
    assert not is_on_network(str(tmp_path), mounts=str(tmp_path / "no such table"))


def test_a_missing_file_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"on {socket.gethostname()}; .* another machine"):
        PathResolver().resolve(Near.of(tmp_path / "none"))


# -- HDFS --------------------------------------------------------------------------------------


def test_an_hdfs_file_lies_on_the_hosts_and_racks_of_its_blocks() -> None:
    with WebHdfs({"/logs/a b.csv": bytes(250)}) as server, Locator(timeout_s=20) as locator:
        location = locator.locate(Near.of(server.url("/logs/a b.csv")))
    assert location is not None
    assert location.n_bytes == 250
    # 100 bytes on nodes 1 and 2, 100 on 2 and 3, 50 on 3 and 1
    assert {h.name: h.share for h in location.hosts} == {
        "dn2.example.org": 0.8,
        "dn1.example.org": 0.6,
        "dn3.example.org": 0.6,
    }
    assert [(r.name, r.share) for r in location.racks] == [("/eu/r1", 1.0), ("/eu/r2", 0.6)]
    assert location.zones == ("eu",)
    workers = [WorkerPlace.of(f"tcp://10.9.0.{i}:1") for i in (1, 2, 3, 4)]
    assert nearest_workers(location, workers) == (
        "tcp://10.9.0.2:1",
        "tcp://10.9.0.1:1",
        "tcp://10.9.0.3:1",
    )
    assert match(location, WorkerPlace.of("tcp://x:1", {"rack": "r2"})) == Match("rack", 0.6)


def test_an_hdfs_url_is_asked_by_webhdfs_as_the_user_and_port_that_were_said() -> None:
    with WebHdfs({"/a": bytes(10)}) as server:
        resolver = HdfsResolver({"hdfs": {"port": server.port, "user": "joe"}})
        assert resolver.resolve(Near.of("hdfs://127.0.0.1:8020/a")).n_bytes == 10
        by_service = HdfsResolver({"hdfs": {"port": server.port, "host": "127.0.0.1"}})
        assert by_service.resolve(Near.of("hdfs://nameservice1/a")).n_bytes == 10
    assert [q.get("user.name") for q in server.queries] == ["joe", None]
    assert {q["op"] for q in server.queries} == {"GETFILEBLOCKLOCATIONS"}


def test_fsspecs_own_configuration_is_used(monkeypatch) -> None:
    from fsspec.config import conf

    with WebHdfs({"/a": bytes(10)}) as server:
        monkeypatch.setitem(conf, "webhdfs", {"port": server.port, "user": "ann"})
        assert HdfsResolver().resolve(Near.of("hdfs://127.0.0.1/a")).n_bytes == 10
    assert server.queries[0]["user.name"] == "ann"


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("hdfs://nn:8020/a", "http://nn:9870/webhdfs/v1"),
        ("webhdfs://nn/a", "http://nn:9870/webhdfs/v1"),
        ("webhdfs://nn:50070/a", "http://nn:50070/webhdfs/v1"),
        ("swebhdfs://nn/a", "https://nn:9871/webhdfs/v1"),
    ],
)
def test_where_webhdfs_is_by_default(url: str, base: str) -> None:
    fs, path = filesystem(url)
    assert (fs.url, path) == (base, "/a")


def test_a_url_without_a_name_node_is_refused_with_the_remedy() -> None:
    with pytest.raises(ConfigurationError, match="names no name node; write hdfs://namenode/path"):
        filesystem("hdfs:///a")


def test_errors_of_the_name_node_keep_their_kind() -> None:
    with WebHdfs({}) as server, pytest.raises(FileNotFoundError, match="does not exist: /a"):
        HdfsResolver().resolve(Near.of(server.url("/a")))


def test_a_name_node_that_is_too_old_is_said_in_words() -> None:
    with WebHdfs({"/a": b"x"}, knows_blocks=False) as server:
        fs, path = filesystem(server.url("/a"))
        with pytest.raises(ValueError, match=r"needs Hadoop 2\.9, 3\.0 or newer"):
            block_locations(fs, path)


def test_a_name_node_that_hangs_costs_a_log_line(caplog) -> None:
    with WebHdfs({"/a": b"x"}) as server:
        server.answers_when.clear()
        with Locator(timeout_s=0.1) as locator:
            assert locator.locate(Near.of(server.url("/a"))) is None
    assert "was not known within 0.1 s" in caplog.text


def test_nodes_without_described_racks_have_none(monkeypatch) -> None:
    monkeypatch.setattr(
        "tests.webhdfs.NODES", tuple((f"d{i}", f"10.9.0.{i}", "/default-rack") for i in range(3))
    )
    with WebHdfs({"/a": bytes(10)}) as server:
        location = HdfsResolver().resolve(Near.of(server.url("/a")))
    assert location.hosts
    assert location.racks == ()
    assert location.zones == ()


# -- S3 ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def s3():
    """A real S3 server (moto) with a bucket in Frankfurt and one at Amazon's first region."""
    pytest.importorskip("s3fs", reason="needs the extra s3")
    moto_server = pytest.importorskip("moto.server", reason="needs moto[s3], flask, flask-cors")
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    options = {"endpoint_url": f"http://{host}:{port}", "key": "k", "secret": "s"}
    fs, _ = filesystem("s3://x", options)
    fs.call_s3(
        "create_bucket",
        Bucket="frankfurt",
        CreateBucketConfiguration={"LocationConstraint": "eu-central-1"},
    )
    fs.call_s3("create_bucket", Bucket="first")
    yield options
    server.stop()


def test_a_buckets_region_is_the_zone_of_its_objects(s3) -> None:
    with Locator(storage_options={"s3": s3}, timeout_s=60) as locator:
        location = locator.locate(Near.of("s3://frankfurt/2024/a.csv"))
        assert location is not None
        assert location.zones == ("eu-central-1",)
        place = WorkerPlace.of("tcp://x:1", {"zone": "eu-central-1b"})
        assert match(location, place) == Match("zone", 1.0)
        assert locator._resolvers["s3"].key(Near.of("s3://frankfurt/other")) == "frankfurt"


def test_an_object_is_cut_into_shards_near_its_bucket(s3) -> None:
    content = b"".join(b"row %d\n" % i for i in range(5000))
    fs, _ = filesystem("s3://x", s3)
    fs.pipe("frankfurt/rows.csv", content)
    parts = shards("s3://frankfurt/rows.csv", n_shards=6, storage_options=s3)
    assert len(parts) == 6
    assert b"".join(line for part in parts for line in part.lines()) == content
    assert {part.near for part in parts} == {(Near("url", "s3://frankfurt/rows.csv"),)}


def test_only_amazon_means_its_first_region_by_saying_nothing(s3) -> None:
    assert S3Resolver({"s3": s3}).resolve(Near.of("s3://first/a")).zones == ()
    from deepflow.locate.object_store import _is_amazon

    class Client:
        class s3:
            class meta:
                endpoint_url = "https://s3.us-east-1.amazonaws.com"

    assert _is_amazon(Client)


def test_a_bucket_that_is_not_there_costs_a_log_line(s3, caplog) -> None:
    with Locator(storage_options={"s3": s3}, timeout_s=60) as locator:
        assert locator.locate(Near.of("s3://no-such-bucket/a")) is None
    assert "FileNotFoundError" in caplog.text


def test_a_missing_package_is_said_with_the_extra_to_install(monkeypatch, caplog) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    loaded = import_module("fsspec.registry")._registry
    monkeypatch.delitem(loaded, "s3", raising=False)
    with Locator(timeout_s=60) as locator:
        assert locator.locate(Near.of("s3://bucket/a")) is None
        assert locator.locate(Near.of("s3://other/a")) is None
    warnings = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert "pip install 'prefect-deepflow[s3]'" in caplog.text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://key:secret@bucket/a", "s3://bucket/a"),
        ("https://h/p?token=x", "https://h/p"),
        ("is it so? yes", "is it so? yes"),
        (os.sep + "a@b", os.sep + "a@b"),
    ],
)
def test_secrets_are_not_shown(text: str, shown: str) -> None:
    assert safe_text(text) == shown
