"""`infra/` says what is true: every image, command, port, address and file that it names."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from distributed.cli import dask_scheduler, dask_worker

import deepflow
from deepflow.hints import GPU_RESOURCE, LABEL_OFFER, label_resource, parse_label_resource
from deepflow.settings import Settings

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
IMAGE = f"localhost/prefect-deepflow:{deepflow.__version__}"
IN_IMAGE = "/opt/deepflow/"

COMPOSE: dict[str, Any] = yaml.safe_load((INFRA / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
PROMETHEUS: dict[str, Any] = yaml.safe_load((INFRA / "prometheus" / "prometheus.yml").read_text())
CONTAINERFILE = (INFRA / "Containerfile").read_text()
README = (INFRA / "README.md").read_text()


def readme_commands() -> dict[str, str]:
    """The tables of the README: what is started, and by which command."""
    rows = re.findall(r"^\| ([^|]+) \| `([^`]+)` \|$", README, re.MULTILINE)
    return {what.strip(): command for what, command in rows}


def program_of(command: str) -> tuple[list[str], dict[str, str]]:
    """The last command of a shell line, and the variables set for it alone."""
    words = shlex.split(command.rsplit(";", 1)[-1])
    n_variables = next(i for i, word in enumerate(words) if not re.match(r"[A-Z_]+=", word))
    return words[n_variables:], dict(word.split("=", 1) for word in words[:n_variables])


def dask_options(words: list[str]) -> dict[str, Any]:
    """A command of Dask as Dask itself reads it, without running it."""
    program = {"scheduler": dask_scheduler.main, "worker": dask_worker.main}[words[1]]
    assert isinstance(program, click.Command)
    return dict(program.make_context(words[1], list(words[2:])).params)


def option(words: list[str], name: str) -> str:
    """The value of `--name value` or `--name=value`."""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == name:
            return following
        if word.startswith(f"{name}="):
            return word.split("=", 1)[1]
    raise AssertionError(f"{words} has no {name}")


@cache
def help_of(*program: str) -> str:
    shown = subprocess.run(
        [sys.executable, "-m", *program, "--help"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env=os.environ | {"COLUMNS": "300", "PREFECT_CLI_COLORS": "false"},
    )
    return shown.stdout


def resources(words: list[str]) -> dict[str, float]:
    pairs = (pair.split("=") for pair in dask_options(words)["resources"].split(","))
    return {name: float(amount) for name, amount in pairs}


def http_port(words: list[str]) -> int:
    return int(dask_options(words)["dashboard_address"].rsplit(":", 1)[1])


# Images and files


def test_every_image_is_ours_of_this_version_or_pinned() -> None:
    for name, service in SERVICES.items():
        image = service["image"]
        if "build" in service:
            assert image == IMAGE, name
        else:
            assert re.fullmatch(r"[a-z0-9/._-]+:v?\d+\.\d+\.\d+", image), f"{name}: {image} floats"
    assert f"-t {IMAGE} " in CONTAINERFILE
    assert f"-t {IMAGE} " in README
    base = re.search(r"^FROM (\S+)$", CONTAINERFILE, re.MULTILINE)
    assert base is not None
    assert re.match(r"python:3\.\d+-", base[1])


def test_the_image_is_built_from_files_that_exist() -> None:
    for service in SERVICES.values():
        if build := service.get("build"):
            context = (INFRA / build["context"]).resolve()
            assert context == ROOT
            assert (context / build["dockerfile"]).samefile(INFRA / "Containerfile")
    copied = [
        source
        for line in re.findall(r"^COPY (.+)$", CONTAINERFILE, re.MULTILINE)
        for source in line.split()[:-1]
    ]
    assert {"constraints.txt", "pyproject.toml", "deepflow", "flows"} <= set(copied)
    assert [source for source in copied if not (ROOT / source).exists()] == []
    assert "-c constraints.txt" in CONTAINERFILE


def test_every_file_named_by_compose_exists_on_the_host_or_in_the_image() -> None:
    for name, service in SERVICES.items():
        if "env_file" in service:
            assert (INFRA / service["env_file"]).is_file(), name
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            known = source in COMPOSE["volumes"] or (INFRA / source).is_file()
            assert known, f"{name}: {volume}"
        for value in service.get("environment", {}).values():
            if value.startswith(IN_IMAGE):
                path = value.removeprefix(IN_IMAGE)
                assert (ROOT / path).is_file(), f"{name}: {value}"
                assert f"COPY {path.split('/')[0]} " in CONTAINERFILE, f"{value} is not copied"


def test_every_file_named_by_the_readme_exists() -> None:
    named = re.findall(r"(?<![\w/.])(?:\$PWD/)?((?:infra|deployments)/[\w./-]+\w)", README)
    assert len(named) >= 5
    assert sorted({path for path in named if not (ROOT / path).exists()}) == []


def test_every_deepflow_variable_is_a_setting() -> None:
    allowed = {f"DEEPFLOW_{name.upper()}" for name in Settings.model_fields} | {"DEEPFLOW_CONFIG"}
    variables = {name for service in SERVICES.values() for name in service.get("environment", {})}
    for command in readme_commands().values():
        variables |= set(re.findall(r"(DEEPFLOW_\w+)=", command))
    assert {name for name in variables if name.startswith("DEEPFLOW_")} <= allowed
    assert {"DEEPFLOW_ADDRESS", "DEEPFLOW_CONFIG", "DEEPFLOW_METRICS_PORT"} <= variables


# Commands


@pytest.mark.parametrize("name", ["scheduler", "worker-cpu", "worker-gpu"])
def test_dask_understands_the_command_of(name: str) -> None:
    words = SERVICES[name]["command"]
    assert words[0] == "dask"
    options = dask_options(words)
    if words[1] == "worker":
        assert options["scheduler"] == "tcp://scheduler:8786"
    assert not options["preload_argv"], "words that no option takes"


def test_a_wrong_option_would_be_noticed() -> None:
    with pytest.raises(click.NoSuchOption):
        dask_options([*SERVICES["scheduler"]["command"], "--no-such-option=1"])


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(SERVICES["prefect-server"]["command"], id="compose: prefect-server"),
        pytest.param(SERVICES["runner"]["command"], id="compose: runner"),
        *(
            pytest.param(words[words.index("prefect") :], id=f"readme: {what}")
            for what, line in readme_commands().items()
            if "prefect" in (words := program_of(line)[0])
        ),
    ],
)
def test_prefect_understands(command: list[str]) -> None:
    leading = [word for word in command if word != "--no-prompt"]
    n_words = next((i for i, word in enumerate(leading) if word.startswith("--")), len(leading))
    subcommands = [word for word in leading[:n_words] if "/" not in word]
    text = help_of(*subcommands)
    assert f"Usage: {' '.join(subcommands)}" in text
    options = {word.split("=")[0] for word in command if word.startswith("--")}
    assert [name for name in options if not re.search(rf"{name}\b", text)] == []


def test_the_readme_starts_each_service_as_compose_does() -> None:
    commands = readme_commands()
    same = {
        "Prefect server": "prefect-server",
        "Dask scheduler": "scheduler",
        "Dask worker, class `cpu`": "worker-cpu",
        "Dask worker, class `gpu`": "worker-gpu",
        "runner": "runner",
    }
    rows = dict(re.findall(r"^\| ([^|]+?) \| `([^`]+)` \|$", README, re.MULTILINE))
    for what, service in same.items():
        words, variables = program_of(rows[what])
        assert words == SERVICES[service]["command"], what
        for name, value in variables.items():
            wanted = SERVICES[service]["environment"][name]
            assert value.replace("$PWD/", IN_IMAGE) == wanted, f"{what}: {name}"
    assert set(same.values()) | {"prometheus"} == set(SERVICES)
    assert commands["Prometheus"].split()[0] == "prometheus"


@pytest.mark.prometheus
def test_prometheus_accepts_its_configuration_and_its_command() -> None:
    if shutil.which("promtool") is None or shutil.which("prometheus") is None:
        pytest.skip("Prometheus is not installed; `apt-get install prometheus`")
    config = INFRA / "prometheus" / "prometheus.yml"
    checked = subprocess.run(
        ["promtool", "check", "config", str(config)], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    shown = subprocess.run(["prometheus", "--help"], capture_output=True, text=True, check=False)
    options = {word.split("=")[0] for word in SERVICES["prometheus"]["command"]}
    assert [name for name in options if name not in shown.stdout + shown.stderr] == []
    mounted = SERVICES["prometheus"]["volumes"][0].split(":")
    assert (INFRA / mounted[0]).samefile(config)
    assert option(SERVICES["prometheus"]["command"], "--config.file") == mounted[1]


# Worker classes


def test_the_two_classes_of_workers_offer_their_labels_as_hints_look_for_them() -> None:
    offers = {name: resources(SERVICES[f"worker-{name}"]["command"]) for name in ("cpu", "gpu")}
    for name, offered in offers.items():
        assert offered[label_resource("class", name)] == LABEL_OFFER
        for resource in offered.keys() - {GPU_RESOURCE}:
            assert parse_label_resource(resource) is not None, f"{resource} is no label"
    assert GPU_RESOURCE not in offers["cpu"]
    assert offers["gpu"][GPU_RESOURCE] == 1


# Ports and addresses


def ports_in_use() -> dict[str, set[int]]:
    """The ports that each service's command listens on."""
    scheduler = SERVICES["scheduler"]["command"]
    return {
        "prefect-server": {int(option(SERVICES["prefect-server"]["command"], "--port"))},
        "scheduler": {int(dask_options(scheduler)["port"]), http_port(scheduler)},
        "worker-cpu": {http_port(SERVICES["worker-cpu"]["command"])},
        "worker-gpu": {http_port(SERVICES["worker-gpu"]["command"])},
        "runner": {int(SERVICES["runner"]["environment"]["DEEPFLOW_METRICS_PORT"])},
    }


def prometheus_port() -> int:
    address = option(SERVICES["prometheus"]["command"], "--web.listen-address")
    return int(address.rsplit(":", 1)[1])


def test_every_port_declared_by_the_image_is_used_and_every_one_used_is_declared() -> None:
    exposed = re.search(r"^EXPOSE (.+)$", CONTAINERFILE, re.MULTILINE)
    assert exposed is not None
    assert {int(port) for port in exposed[1].split()} == set.union(*ports_in_use().values())


def test_every_published_port_is_one_that_somebody_listens_on() -> None:
    listening = ports_in_use()
    # Prometheus shares the runner's network, so its port is published there.
    assert SERVICES["prometheus"]["network_mode"] == "service:runner"
    listening["runner"] |= {prometheus_port()}
    published: set[int] = set()
    for name, service in SERVICES.items():
        for pair in service.get("ports", []):
            host, inside = map(int, pair.split(":"))
            assert inside in listening[name], f"{name}: nobody listens on {inside}"
            assert host not in published, f"{host} is published twice"
            published.add(host)
    for port in re.findall(r"<http://127\.0\.0\.1:(\d+)>", README):
        assert int(port) in published, f"the README sends people to {port}"


def test_everything_that_exports_metrics_is_scraped_at_its_port() -> None:
    listening = ports_in_use()
    scraped: set[tuple[str, int]] = set()
    for job in PROMETHEUS["scrape_configs"]:
        for group in job.get("static_configs", []):
            for target in group["targets"]:
                host, port = target.split(":")
                scraped.add((host, int(port)))
        for lookup in job.get("dns_sd_configs", []):
            scraped |= {(name, lookup["port"]) for name in lookup["names"]}
    driver = int(SERVICES["runner"]["environment"]["DEEPFLOW_METRICS_PORT"])
    assert scraped == {
        ("127.0.0.1", driver),
        ("scheduler", http_port(SERVICES["scheduler"]["command"])),
        ("worker-cpu", *listening["worker-cpu"]),
        ("worker-gpu", *listening["worker-gpu"]),
    }


def test_every_address_is_a_service_at_a_port_that_it_listens_on() -> None:
    listening = ports_in_use()
    texts = [
        text
        for service in SERVICES.values()
        for text in [*service["command"], *map(str, service.get("environment", {}).values())]
    ]
    addresses = [m for text in texts for m in re.findall(r"(?:tcp|http)://([\w.-]+):(\d+)", text)]
    assert len(addresses) >= 4
    for host, port in addresses:
        if host == "127.0.0.1":
            host = "prefect-server"  # what a browser on the host is told
        assert int(port) in listening[host], f"{host}:{port}"


def test_services_wait_only_for_services_that_exist() -> None:
    for name, service in SERVICES.items():
        for other in service.get("depends_on", []):
            assert other in SERVICES, f"{name} waits for {other}"
