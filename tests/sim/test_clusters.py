import json
import math

import pytest

from deepflow.errors import ConfigurationError
from deepflow.sim.builtin import BUILTIN_CLUSTERS, builtin_cluster, builtin_clusters
from deepflow.sim.cluster import ClusterSpec, LinkFailure, NetworkSpec, SimWorkerClass, WorkerDeath
from deepflow.sim.clusters import parse_bandwidth, read_cluster
from deepflow.sim.gavel import gavel_assigned, gavel_speeds
from deepflow.sim.network import Network, sites
from tests.sim.shared_data import GAVEL_FILE, needs_gavel

SMALL = """
name = "small"
[[classes]]
name = "plain"
count = 2
"""


def write(folder, text, name="cluster.toml"):
    path = folder / name
    path.write_text(text)
    return path


def gavel_file(folder, **changes):
    """Throughputs in Gavel's form: two jobs that all types ran, one that k80 did not."""
    steps = {"k80": (2.0, 4.0, 0.0), "p100": (8.0, 6.0, 5.0), "v100": (20.0, 2.0, 5.0)} | changes
    jobs = ("('ResNet (batch size 8)', 1)", "('A3C', 1)", "('Large', 1)")
    content = {
        worker_type: {
            **{
                job: {"null": n, "('A3C', 1)": [1.0, 1.0]}
                for job, n in zip(jobs, rate, strict=True)
            },
            "('A3C', 2)": {"null": 1000.0},
        }
        for worker_type, rate in steps.items()
    }
    path = folder / "throughputs.json"
    path.write_text(json.dumps(content))
    return path


# Files


def test_least_file_has_the_defaults_of_the_values(tmp_path):
    cluster = read_cluster(write(tmp_path, SMALL))
    assert cluster == ClusterSpec("small", (SimWorkerClass("plain", 2),))


def test_every_key_of_the_documented_form_is_read(tmp_path):
    gavel_file(tmp_path)
    text = """
        name = "full"
        noise = 0.1
        control_latency_s = 0.002
        gavel_file = "throughputs.json"

        [[classes]]
        name = "fast"
        count = 4
        threads = 2
        memory = "16 GiB"
        speed = 2
        speeds = { "infer+gpu" = 20.0, "decode*" = 2.5 }
        gavel = "v100"
        resources = { GPU = 1, disk = 2.5 }
        labels = { zone = "north", tier = "edge" }
        workers_per_host = 2
        nic = "10 Gbit/s"
        starts_after_s = 5

        [network]
        topology = "three-layer"
        hosts_per_rack = 2
        racks_per_zone = 3
        rack_uplink = "20 Gbit/s"
        zone_uplink = 5e9
        edge_uplink = "100 Mbit/s"
        process = "4 GB/s"
        latency_s = [0.1, 0.2, 0.3, 0.4, 1]
        fat_tree_k = 8

        [[failures]]
        link = "edge-uplink:*"
        from_s = 60
        to_s = inf

        [[deaths]]
        worker = "fast-3"
        at_s = 120
        back_after_s = 30
    """
    assert read_cluster(write(tmp_path, text), kinds=["fast"]) == ClusterSpec(
        name="full",
        classes=(
            SimWorkerClass(
                name="fast",
                count=4,
                threads=2,
                memory_bytes=16 * 2**30,
                speed=2.0,
                speeds=(
                    ("infer+gpu", 20.0),
                    ("decode*", 2.5),
                    *gavel_assigned(["fast"], (("A3C", 0.5), ("ResNet (batch size 8)", 10.0))),
                    ("A3C", 0.5),
                    ("ResNet (batch size 8)", 10.0),
                ),
                resources=(("GPU", 1.0), ("disk", 2.5)),
                labels=(("zone", "north"), ("tier", "edge")),
                workers_per_host=2,
                nic_bytes_per_s=1.25e9,
                starts_after_s=5.0,
            ),
        ),
        network=NetworkSpec(
            topology="three-layer",
            hosts_per_rack=2,
            racks_per_zone=3,
            rack_uplink_bytes_per_s=2.5e9,
            zone_uplink_bytes_per_s=5e9,
            edge_uplink_bytes_per_s=12.5e6,
            process_bytes_per_s=4e9,
            latency_s=(0.1, 0.2, 0.3, 0.4, 1.0),
            fat_tree_k=8,
            failures=(LinkFailure("edge-uplink:*", 60.0, math.inf),),
        ),
        deaths=(WorkerDeath("fast-3", 120.0, 30.0),),
        noise=0.1,
        control_latency_s=0.002,
    )


@pytest.mark.parametrize(
    ("text", "bytes_per_s"),
    [
        ("10 Gbit/s", 1.25e9),
        ("100Mbit/s", 12.5e6),
        ("8 bit/s", 1.0),
        ("1.5 MB/s", 1.5e6),
        ("2 MiB/s", 2 * 2**20),
        ("1e3 kb/s", 1e6),
        (42, 42.0),
        (0.5, 0.5),
    ],
)
def test_bandwidths_are_text_with_a_unit_or_bytes(text, bytes_per_s):
    assert parse_bandwidth(text) == bytes_per_s


@pytest.mark.parametrize(
    "value", ["fast", "10", "10 Gbit", "1.2.3 GB/s", "-1 GB/s", "0 GB/s", 0, -5, math.inf, True, []]
)
def test_what_is_no_bandwidth_is_refused(value):
    with pytest.raises(ValueError, match=r"bandwidth|convert"):
        parse_bandwidth(value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("name =", "nmae ="), r"name is missing; nmae is no key; did you mean 'name'\?"),
        (("count", "cuont"), r"classes\.0\.cuont is no key; did you mean 'count'\?"),
        (("count = 2", "count = 2\nnic_speed = 3"), r"classes\.0\.nic_speed is no key; did you me"),
        (("count = 2", "count = 0"), r"classes\.0\.count=0: .*greater than or equal to 1"),
        (("count = 2", "count = 2.5"), r"classes\.0\.count=2\.5: .*valid integer"),
        (("count = 2", "count = 2\nspeed = 0"), r"speed=0: .*greater than 0"),
        (("count = 2", "count = 2\nspeed = inf"), r"speed=inf: .*finite"),
        (("count = 2", "count = 2\nspeeds = { a = -1 }"), r"speeds\.a=-1: .*greater than 0"),
        (("count = 2", 'count = 2\nnic = "fast"'), r"nic='fast': write a bandwidth as"),
        (("count = 2", 'count = 2\nmemory = "much"'), r"memory.*'much' is not a size"),
        (("count = 2", "count = 2\nlabels = { zone = 3 }"), r"labels\.zone=3: .*valid string"),
        (("count = 2", 'count = 2\nlabels = { "a b" = "c" }'), r"'a b' cannot be the name"),
        (("count = 2", 'count = 2\ngavel = "v100"'), r"gavel='v100', but the cluster has no gavel"),
        (('"plain"', '"a b"'), r"classes\.0\.name='a b'"),
        (
            ("count = 2", "count = 2\n[network]\nhosts = 3"),
            r"network\.hosts is no key; did you mea",
        ),
        (
            ("count = 2", 'count = 2\n[network]\ntopology = "tree"'),
            r"'tree' is not a topology; did",
        ),
        (("count = 2", "count = 2\n[network]\nlatency_s = [1]"), r"latency_s=\[1\]: .*at least 5"),
        (
            ("count = 2", 'count = 2\n[[deaths]]\nworker = "plian-1"\nat_s = 1'),
            r"no worker is named 'plian-1'; did you mean 'plain-1'",
        ),
        (
            ("count = 2", 'count = 2\n[[failures]]\nlink = "nic:?"\nfrom_s = 1\nto_s = 2'),
            r"no link or switch is named 'nic:\?'",
        ),
        (("[[classes]]", "[classes]"), r"classes=.*valid list"),
        (('name = "small"', "name = 'small"), "is not TOML"),
    ],
)
def test_what_cannot_be_is_refused_with_file_key_and_reason(tmp_path, change, message):
    assert change[0] in SMALL
    path = write(tmp_path, SMALL.replace(*change, 1))
    with pytest.raises(ConfigurationError, match=message) as refusal:
        read_cluster(path)
    assert str(path) in str(refusal.value)


def test_classes_of_one_name_are_refused(tmp_path):
    text = SMALL + SMALL.replace('name = "small"', "")
    with pytest.raises(ConfigurationError, match="two classes are named 'plain'"):
        read_cluster(write(tmp_path, text))


def test_absent_file_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="cannot read the cluster"):
        read_cluster(tmp_path / "absent.toml")


# Measured speeds


def test_gavel_speeds_are_relative_to_k80_for_single_gpus_that_all_types_ran(tmp_path):
    path = gavel_file(tmp_path)
    assert gavel_speeds(path, "k80") == (("A3C", 1.0), ("ResNet (batch size 8)", 1.0))
    assert gavel_speeds(path, "v100") == (("A3C", 0.5), ("ResNet (batch size 8)", 10.0))


def test_unmeasured_kinds_are_assigned_the_same_job_on_every_class():
    fast = (("A3C", 0.5), ("ResNet", 10.0), ("LM", 4.0))
    slow = (("A3C", 1.0), ("ResNet", 2.0), ("LM", 3.0))
    kinds = [f"kind-{n}" for n in range(50)] + ["ResNet"]
    pairs = {job: (speed, other) for (job, speed), (_, other) in zip(fast, slow, strict=True)}
    assigned = dict(zip(gavel_assigned(kinds, fast), gavel_assigned(kinds, slow), strict=True))
    assert all(a[0] == b[0] and (a[1], b[1]) in pairs.values() for a, b in assigned.items())
    assert {a[1] for a in assigned} == {0.5, 10.0, 4.0}
    # One that was measured keeps its own, and what else is asked for changes nothing.
    assert "ResNet" not in dict(gavel_assigned(kinds, fast))
    assert gavel_assigned(["kind-7"], fast)[0] in gavel_assigned(kinds, fast)
    # By CRC-32, for good: crc32(b"bwa") % 3 == 0.
    assert gavel_assigned(["bwa"], fast) == (("bwa", 0.5),)


def test_assigned_kinds_match_themselves_only():
    pairs = gavel_assigned(["a*", "a[b]"], (("job", 3.0),))
    worker_class = SimWorkerClass("w", 1, speeds=pairs)
    assert worker_class.speed_for("a*") == worker_class.speed_for("a[b]") == 3.0
    assert worker_class.speed_for("ab") == 1.0


def test_foreign_gavel_files_and_types_are_refused(tmp_path):
    with pytest.raises(ConfigurationError, match=r"gavel='a100' is not a type.*k80, p100, v100"):
        gavel_speeds(gavel_file(tmp_path), "a100")
    with pytest.raises(ConfigurationError, match="cannot read Gavel's throughputs"):
        gavel_speeds(tmp_path / "absent.json", "k80")
    for text, message in (
        ("{", "is not JSON"),
        ("[]", "form of Gavel"),
        ("{}", "form of Gavel"),
        ('{"k80": {"ResNet": {"null": 1}}}', "form of Gavel"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            gavel_speeds(write(tmp_path, text, "other.json"), "k80")
    with pytest.raises(ConfigurationError, match="has no job"):
        gavel_speeds(gavel_file(tmp_path, k80=(0.0, 0.0, 0.0)), "k80")


@needs_gavel
def test_real_measurements_have_unlike_speed_ups():
    v100 = dict(gavel_speeds(GAVEL_FILE, "v100"))
    p100 = dict(gavel_speeds(GAVEL_FILE, "p100"))
    assert len(v100) == 26
    assert v100["ResNet-18 (batch size 256)"] == pytest.approx(10.300256501360458 / 0.8855799947494)
    assert min(v100.values()) < 1 < max(v100.values())
    assert any(p100[job] > v100[job] for job in v100)


# Built in


@pytest.mark.parametrize("name", [name for name in BUILTIN_CLUSTERS if name != "gavel"])
def test_built_in_clusters_have_16_workers_and_a_network(name):
    cluster = builtin_clusters()[name]
    assert cluster.name == name
    hosts = sites(cluster)
    assert len(hosts) == 16
    network = Network(cluster.network, hosts)
    workers = list(hosts)
    assert network.route(workers[0], workers[-1]) is not None


def test_gavel_is_built_from_its_file_only(tmp_path):
    assert "gavel" not in builtin_clusters()
    with pytest.raises(ConfigurationError, match="give gavel_file"):
        builtin_cluster("gavel")
    path = gavel_file(tmp_path)
    cluster = builtin_clusters(gavel_file=path, kinds=iter(["bwa", "cat"]))["gavel"]
    assert [c.count for c in cluster.classes] == [4, 4, 8]
    v100, p100, k80 = cluster.classes
    assert v100.speed_for("A3C") == 0.5
    assert k80.speed_for("A3C") == k80.speed_for("bwa") == 1.0
    jobs = {(0.5, 1.5), (10.0, 4.0)}
    assert {(v100.speed_for(k), p100.speed_for(k)) for k in ("bwa", "cat")} <= jobs
    assert v100.speed_for("unnamed") == pytest.approx(math.sqrt(0.5 * 10.0))


def test_gpus_are_faster_at_inference_and_at_nothing_else():
    cpu, gpu = builtin_cluster("gpu-mixed").classes
    assert gpu.speed_for("infer", on_gpu=True) == gpu.speed_for("infer+gpu") == 10.0
    for kind in ("decode", "infer", "post"):
        assert gpu.speed_for(kind) == cpu.speed_for(kind) == 1.0
    assert gpu.speed_for("decode", on_gpu=True) == 1.0


def test_misspelt_built_in_is_refused_with_the_nearest():
    with pytest.raises(ConfigurationError, match="did you mean 'three-speeds'"):
        builtin_cluster("three_speed")
