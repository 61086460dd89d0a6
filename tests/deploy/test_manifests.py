"""What goes to a cluster: the manifests as kustomize renders them, the image's recipe, the runtime's lock."""

from __future__ import annotations

import asyncio
import base64
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlsplit
from urllib.request import urlopen

import asyncpg
import grpc
import jwt
import kubernetes_validate
import pytest
import yaml
from google.protobuf.json_format import ParseDict
from grpc_health.v1 import health_pb2, health_pb2_grpc
from loyalty.cards.v1 import cards_service_pb2 as cards_pb
from loyalty.cards.v1.cards_service_pb2_grpc import CardsServiceStub
from loyalty.groups.v1 import groups_service_pb2 as groups_pb
from loyalty.groups.v1.groups_service_pb2_grpc import GroupsServiceStub
from loyalty.points.v1 import points_service_pb2 as pb
from loyalty.points.v1.points_service_pb2_grpc import PointsServiceStub
from loyalty.referral.v1 import referral_service_pb2 as referral_pb
from loyalty.referral.v1.referral_service_pb2_grpc import ReferralServiceStub

from services.cards.settings import CardsSettings
from services.chassis.database import ACQUIRE_TIMEOUT
from services.chassis.settings import ServiceSettings
from services.cli.servers import HOST, Guarded, Postgres, free_port
from services.groups.settings import GroupsSettings
from services.points.settings import PointsSettings
from services.referral.settings import ReferralSettings
from tests.referral.calls import a_campaign
from tests.support import PROGRAMME, TIMEOUT, fresh, refused

Document: TypeAlias = dict[str, Any]

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DEV = DEPLOY / "k8s/overlays/dev"
KUBERNETES = "1.37"
OURS = "loyalty"  # the image
RENDERED = ("base", "overlays/dev")
POD_OWNERS = ("Deployment", "StatefulSet", "Job")
SETTINGS: dict[str, type[ServiceSettings]] = {
    "points": PointsSettings,
    "cards": CardsSettings,
    "groups": GroupsSettings,
    "referral": ReferralSettings,
}
START_TIMEOUT = 60.0  # seconds
POLL = 0.05  # seconds between looks


@pytest.fixture(scope="module", params=RENDERED)
def documents(request: pytest.FixtureRequest) -> list[Document]:
    """Each of the two in turn, as a cluster would get it."""
    return render(request.param)


@pytest.fixture(scope="module")
def dev() -> list[Document]:
    """The overlay that is whole by itself."""
    return render("overlays/dev")


@pytest.fixture(scope="module", params=SETTINGS)
def service(request: pytest.FixtureRequest) -> str:
    """Each service in turn."""
    return str(request.param)


def render(folder: str) -> list[Document]:
    kubectl = Path(sys.executable).with_name("kubectl")
    done = subprocess.run(
        [kubectl, "kustomize", DEPLOY / "k8s" / folder],
        capture_output=True,
        text=True,
        check=True,
        timeout=START_TIMEOUT,
    )
    assert not done.stderr  # where kustomize warns
    return list(yaml.safe_load_all(done.stdout))


def of_kind(documents: list[Document], *kinds: str) -> list[Document]:
    return [document for document in documents if document["kind"] in kinds]


def one(documents: list[Document], kind: str, name: str) -> Document:
    """The document of that name, whatever hash kustomize put behind it."""
    pattern = re.compile(rf"{name}(-[a-z0-9]{{10}})?")
    [found] = [d for d in of_kind(documents, kind) if pattern.fullmatch(d["metadata"]["name"])]
    return found


def pods(documents: list[Document]) -> list[Document]:
    return [owner["spec"]["template"] for owner in of_kind(documents, *POD_OWNERS)]


def containers(documents: list[Document], image: str = "") -> list[Document]:
    found = [container for pod in pods(documents) for container in pod["spec"]["containers"]]
    return [container for container in found if not image or tag_of(container)[0] == image]


def tag_of(container: Document) -> list[str]:
    return str(container["image"]).rsplit(":", 1)


def server(documents: list[Document], service: str) -> Document:
    """The pod of a service."""
    pod: Document = one(documents, "Deployment", service)["spec"]["template"]
    return pod


def serving_container(documents: list[Document], service: str) -> Document:
    """What serves in it."""
    [container] = server(documents, service)["spec"]["containers"]
    found: Document = container
    return found


def migration(documents: list[Document], service: str, tag: str) -> Document:
    """What migrates a service's schema."""
    job = one(documents, "Job", f"{service}-migrate-{tag}")
    [container] = job["spec"]["template"]["spec"]["containers"]
    found: Document = container
    return found


def service_of(container: Document) -> str:
    """Whose a container of ours is, by its command."""
    return str(container["command"][2]).removeprefix("services.")


def decoded(secret: Document) -> dict[str, str]:
    return {name: base64.b64decode(value).decode() for name, value in secret["data"].items()}


def environment(documents: list[Document], container: Document) -> dict[str, str]:
    """The variables that a container gets from what is rendered; a later source overrides."""
    found: dict[str, str] = {}
    for source in container.get("envFrom", ()):
        for config in of_kind(documents, "ConfigMap"):
            if config["metadata"]["name"] == source.get("configMapRef", {}).get("name"):
                found |= config["data"]
        for secret in of_kind(documents, "Secret"):
            if secret["metadata"]["name"] == source.get("secretRef", {}).get("name"):
                found |= decoded(secret)
    return found | {variable["name"]: variable["value"] for variable in container.get("env", ())}


def settings_of(documents: list[Document], container: Document) -> ServiceSettings:
    """The settings that its variables make. Every one must be a setting, or it would be ignored."""
    service, variables = service_of(container), environment(documents, container)
    fields = {f"{service}_{name}".upper() for name in SETTINGS[service].model_fields}
    assert set(variables) <= fields
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        return SETTINGS[service]()


def selects(selector: dict[str, str], pod: Document) -> bool:
    labels: dict[str, str] = pod["metadata"]["labels"]
    return selector.items() <= labels.items()


def port_of(address: str) -> int:
    return int(address.rsplit(":", 1)[1])


# --- manifests ------------------------------------------------------------------------------------------


def test_every_document_is_valid_kubernetes(documents: list[Document]) -> None:
    for document in documents:
        assert kubernetes_validate.validate(document, KUBERNETES, strict=True) == KUBERNETES


def test_a_misspelt_field_would_be_noticed(documents: list[Document]) -> None:
    deployment = json.loads(json.dumps(one(documents, "Deployment", "points")))
    deployment["spec"]["template"]["spec"]["terminationGracePeriod"] = 45
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, KUBERNETES, strict=True)


def test_every_pod_is_restricted(documents: list[Document]) -> None:
    for pod in pods(documents):
        spec, context = pod["spec"], pod["spec"]["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["runAsUser"] > 0
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & spec.keys()
        assert all(not {"hostPath"} & volume.keys() for volume in spec["volumes"])
    for container in containers(documents):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
    for account in of_kind(documents, "ServiceAccount"):
        assert account["automountServiceAccountToken"] is False


def test_every_container_says_what_it_needs_and_what_it_may_take(documents: list[Document]) -> None:
    for container in containers(documents):
        for bound in ("requests", "limits"):
            assert container["resources"][bound].keys() == {"cpu", "memory"}


def test_every_image_is_of_a_version(documents: list[Document]) -> None:
    for container in containers(documents):
        _name, tag = tag_of(container)
        assert tag != "latest"


def test_the_base_runs_the_version_of_the_project() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert {tag_of(container)[1] for container in containers(render("base"), OURS)} == {version}


def test_every_volume_is_mounted_and_every_mount_has_a_volume(documents: list[Document]) -> None:
    for owner in of_kind(documents, *POD_OWNERS):
        spec = owner["spec"]["template"]["spec"]
        claims = [claim["metadata"] for claim in owner["spec"].get("volumeClaimTemplates", ())]
        mounts = {mount["name"] for container in spec["containers"] for mount in container["volumeMounts"]}
        assert mounts == {volume["name"] for volume in [*spec["volumes"], *claims]}


def test_the_servers_can_write_to_tmp(documents: list[Document]) -> None:
    for pod in pods(documents):
        emptied = {volume["name"] for volume in pod["spec"]["volumes"] if "emptyDir" in volume}
        for container in pod["spec"]["containers"]:
            if tag_of(container)[0] == OURS:
                paths = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
                assert "/tmp" in {paths.get(name) for name in emptied}  # noqa: S108 - in the container


def test_selectors_match_the_labels_of_their_pods(documents: list[Document]) -> None:
    for owner in of_kind(documents, "Deployment", "StatefulSet"):
        assert selects(owner["spec"]["selector"]["matchLabels"], owner["spec"]["template"])
    for service in of_kind(documents, "Service"):
        [pod] = [pod for pod in pods(documents) if selects(service["spec"]["selector"], pod)]
        ports = {port["name"]: port["containerPort"] for port in pod["spec"]["containers"][0]["ports"]}
        for port in service["spec"]["ports"]:
            assert ports[port["name"]] == port["port"]  # headless: nothing translates
            assert port.get("targetPort", port["name"]) in (port["name"], port["port"])
    for pod in (server(documents, service) for service in SETTINGS):
        for spread in pod["spec"]["topologySpreadConstraints"]:
            assert selects(spread["labelSelector"]["matchLabels"], pod)


def test_the_disruption_budget_is_about_the_servers_and_blocks_no_drain(
    documents: list[Document], service: str
) -> None:
    budget = one(documents, "PodDisruptionBudget", service)["spec"]
    assert [pod for pod in pods(documents) if selects(budget["selector"]["matchLabels"], pod)] == [
        server(documents, service)
    ]
    assert budget["maxUnavailable"] == 1


def test_a_rollout_takes_nothing_away_before_its_replacement_is_ready(
    documents: list[Document], service: str
) -> None:
    assert one(documents, "Deployment", service)["spec"]["strategy"] == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1},
    }


def test_the_base_has_two_replicas_and_the_try_out_has_one(dev: list[Document], service: str) -> None:
    assert one(render("base"), "Deployment", service)["spec"]["replicas"] == 2
    assert one(dev, "Deployment", service)["spec"]["replicas"] == 1


def test_the_ports_are_those_of_the_settings(documents: list[Document], service: str) -> None:
    container = serving_container(documents, service)
    settings = settings_of(documents, container)
    assert {port["name"]: port["containerPort"] for port in container["ports"]} == {
        "grpc": port_of(settings.grpc_address),
        "health": port_of(settings.health_address),
        "metrics": port_of(settings.metrics_address),
    }


def test_the_kubelet_asks_the_health_port_for_live_and_ready(documents: list[Document], service: str) -> None:
    container = serving_container(documents, service)
    health = port_of(settings_of(documents, container).health_address)
    assert container["startupProbe"]["grpc"] == {"port": health, "service": "live"}
    assert container["livenessProbe"]["grpc"] == {"port": health, "service": "live"}
    assert container["readinessProbe"]["grpc"] == {"port": health, "service": "ready"}


def test_a_stopping_pod_has_time_for_its_pause_its_calls_and_its_connections(
    documents: list[Document], service: str
) -> None:
    spec = server(documents, service)["spec"]
    [container] = spec["containers"]
    pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    stop_grace = settings_of(documents, container).stop_grace
    assert spec["terminationGracePeriodSeconds"] > pause + stop_grace + ACQUIRE_TIMEOUT


def test_the_commands_are_modules_of_ours(documents: list[Document]) -> None:
    commands = set()
    for container in containers(documents, OURS):
        python, flag, module, verb = container["command"]
        assert (python, flag) == ("python", "-m")
        assert importlib.util.find_spec(f"{module}.__main__")
        commands.add((module, verb))
    assert commands == {(f"services.{name}", verb) for name in SETTINGS for verb in ("serve", "migrate")}


def test_callers_need_a_token_of_a_key_that_is_mounted(documents: list[Document], service: str) -> None:
    container = serving_container(documents, service)
    settings = settings_of(documents, container)
    assert settings.jwks_file
    assert settings.token_audience == service
    assert not settings.open_on_loopback
    [mount] = [mount for mount in container["volumeMounts"] if mount["name"] == "jwks"]
    assert str(settings.jwks_file.parent) == mount["mountPath"]
    assert "subPath" not in mount


def test_nothing_for_tests_reaches_a_cluster(documents: list[Document]) -> None:
    for container in containers(documents, OURS):
        settings = settings_of(documents, container)
        assert (settings.test_clock, settings.failpoint) == (None, None)


def test_only_the_migration_knows_the_owner_of_the_tables(dev: list[Document], service: str) -> None:
    served = settings_of(dev, serving_container(dev, service))
    migrated = settings_of(dev, migration(dev, service, "dev"))
    assert served.owner_url is None
    assert migrated.owner_url
    assert migrated.database_role == urlsplit(served.database_url.get_secret_value()).username


def test_a_migration_ends_and_is_tidied_away(documents: list[Document]) -> None:
    for job in of_kind(documents, "Job"):
        assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"
        for limit in ("backoffLimit", "activeDeadlineSeconds", "ttlSecondsAfterFinished"):
            assert job["spec"][limit] > 0


def test_each_version_has_a_migration_of_its_own(dev: list[Document], service: str) -> None:
    assert len(of_kind(dev, "Job")) == len(SETTINGS)
    tags = {tag_of(container)[1] for container in containers(dev, OURS)}
    assert tags == {"dev"}
    # A Job cannot be changed: a setting with a hash in its name would change it.
    assert migration(dev, service, "dev")["envFrom"] == [{"secretRef": {"name": f"{service}-owner"}}]


def test_the_first_step_of_a_release_is_everything_but_the_servers(documents: list[Document]) -> None:
    component = "app.kubernetes.io/component"
    later = [d for d in documents if d["metadata"].get("labels", {}).get(component) == "server"]
    assert [d["metadata"]["name"] for d in later] == sorted(SETTINGS)
    assert {d["kind"] for d in later} == {"Deployment"}


def test_only_who_must_reaches_the_servers(documents: list[Document], service: str) -> None:
    settings = settings_of(documents, serving_container(documents, service))
    policy = one(documents, "NetworkPolicy", service)["spec"]
    chosen = [pod for pod in pods(documents) if selects(policy["podSelector"]["matchLabels"], pod)]
    ours = [container for container in containers(documents, OURS) if service_of(container) == service]
    assert [c for pod in chosen for c in pod["spec"]["containers"]] == ours
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["ingress"] == [
        {
            "from": [{"podSelector": {"matchLabels": {f"{service}-client": "allowed"}}}],
            "ports": [{"port": port_of(settings.grpc_address)}],
        },
        {"ports": [{"port": port_of(settings.health_address)}]},
        {
            "from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
            "ports": [{"port": port_of(settings.metrics_address)}],
        },
    ]


def test_the_servers_reach_only_the_database_the_broker_and_names(dev: list[Document], service: str) -> None:
    settings = settings_of(dev, serving_container(dev, service))
    database, broker, names = one(dev, "NetworkPolicy", service)["spec"]["egress"]
    for rule, url in (
        (database, settings.database_url.get_secret_value()),
        (broker, settings.nats_url),
    ):
        [peer], [port] = rule["to"], rule["ports"]
        parts = urlsplit(url)
        [pod] = [pod for pod in pods(dev) if selects(peer["podSelector"]["matchLabels"], pod)]
        assert selects(one(dev, "Service", str(parts.hostname))["spec"]["selector"], pod)
        assert port == {"port": parts.port}
    assert {port["port"] for port in names["ports"]} == {53}
    assert all("namespaceSelector" in peer for peer in names["to"])


def test_the_try_out_lives_in_a_restricted_namespace_of_its_own(dev: list[Document]) -> None:
    [namespace] = of_kind(dev, "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    others = [document for document in dev if document is not namespace]
    assert {d["metadata"]["namespace"] for d in others} == {namespace["metadata"]["name"]}


def test_the_secrets_in_the_tree_are_plainly_for_trying_out(dev: list[Document]) -> None:
    assert not of_kind(render("base"), "Secret")
    for secret in of_kind(dev, "Secret"):
        assert all("dev-only" in value for value in decoded(secret).values())


# --- the try-out, on real servers -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(data: Path, dev: list[Document]) -> Iterator[dict[str, str]]:
    """The overlay's roles, broker, secrets, settings and commands, on loopback: gRPC addresses by service."""
    broker, monitor = (f"{HOST}:{free_port()}" for _ in range(2))
    with Postgres.start(data / "postgres") as postgres, start_nats(dev, data, broker, monitor):
        asyncio.run(make_roles(postgres.url(), decoded(one(dev, "Secret", "postgres"))["roles.sql"]))
        moved = {"postgres:5432": f"{HOST}:{postgres.port}", "nats:4222": broker}
        with ExitStack() as stack:
            yield {name: stack.enter_context(started(dev, name, data, moved)) for name in SETTINGS}


@contextmanager
def started(documents: list[Document], service: str, folder: Path, moved: dict[str, str]) -> Iterator[str]:
    """A service, migrated and then served; yields its gRPC address."""

    def start(container: Document, **extra: str) -> Guarded:
        """Only what the manifests say is in the environment, as in a container."""
        variables = environment(documents, container) | extra
        for place, address in moved.items():
            variables = {name: value.replace(place, address) for name, value in variables.items()}
        arguments = container["command"][1:]
        log = folder / f"{service}-{arguments[-1]}.log"
        return Guarded([sys.executable, *arguments], env=variables, log=log)

    with start(migration(documents, service, "dev")) as migrating:
        assert migrating.wait(START_TIMEOUT) == 0, migrating.tail()
    keys = folder / f"{service}-jwks.json"
    keys.write_text(one(documents, "ConfigMap", f"{service}-jwks")["data"]["jwks.json"])
    here = {f"{name}_address": f"{HOST}:{free_port()}" for name in ("grpc", "health", "metrics")}
    variables = {
        f"{service}_{name}".upper(): value for name, value in (here | {"jwks_file": str(keys)}).items()
    }
    serve = serving_container(documents, service)
    with start(serve, **variables) as process:
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            poll(process, lambda: serving(here["health_address"], serve[probe]["grpc"]["service"]))  # noqa: B023
        yield here["grpc_address"]


@contextmanager
def start_nats(documents: list[Document], folder: Path, broker: str, monitor: str) -> Iterator[None]:
    """A broker with the overlay's configuration, which must keep every message safe from a power cut."""
    text = one(documents, "ConfigMap", "nats")["data"]["nats.conf"]
    for place, here in {"0.0.0.0:4222": broker, "0.0.0.0:8222": monitor, "/data": str(folder)}.items():
        assert place in text
        text = text.replace(place, here)
    configuration = folder / "nats.conf"
    configuration.write_text(text)
    binary = Path(sys.executable).with_name("nats-server")
    [container] = one(documents, "StatefulSet", "nats")["spec"]["template"]["spec"]["containers"]
    with Guarded([binary, container["args"][0], configuration], log=folder / "nats.log") as process:
        poll(process, lambda: fetch(monitor, container["readinessProbe"]["httpGet"]["path"]) is not None)
        varz = fetch(monitor, "/varz")
        assert varz
        assert varz["jetstream"]["config"]["sync_always"] is True
        yield


def fetch(address: str, path: str) -> Document | None:
    """What a broker says of itself, None while it is not ready."""
    with suppress(OSError), urlopen(f"http://{address}{path}", timeout=TIMEOUT) as answer:
        found: Document = json.load(answer)
        return found
    return None


async def make_roles(url: str, script: str) -> None:
    connection = await asyncpg.connect(url)
    for statement in filter(str.strip, script.split(";")):  # a database is not made inside a transaction
        await connection.execute(statement)
    await connection.close()


def serving(address: str, service: str) -> bool:
    request = health_pb2.HealthCheckRequest(service=service)
    with grpc.insecure_channel(address) as channel, suppress(grpc.RpcError):
        answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=TIMEOUT)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
    return False


def poll(process: Guarded, done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while not done():
        assert process.poll() is None, process.tail()
        assert time.monotonic() < deadline, process.tail()
        time.sleep(POLL)


def put_programme(channel: grpc.Channel, **call: Any) -> int:
    request = pb.PutProgrammeRequest(
        request_id=fresh("programme"), programme=ParseDict(PROGRAMME, pb.Programme())
    )
    return PointsServiceStub(channel).PutProgramme(request, timeout=TIMEOUT, **call).version


def put_product(channel: grpc.Channel, **call: Any) -> int:
    product = cards_pb.Product(
        code="king", family="king", price_minor=1900, currency_code="CNY", period="P1M"
    )
    request = cards_pb.PutProductRequest(request_id=fresh("product"), product=product)
    return CardsServiceStub(channel).PutProduct(request, timeout=TIMEOUT, **call).version


def put_scheme(channel: grpc.Channel, **call: Any) -> int:
    scheme = groups_pb.Scheme(
        scheme_id="fans", kind=groups_pb.SCHEME_KIND_INVITE, name_pattern="粉丝群{seq}", capacity=500
    )
    request = groups_pb.PutSchemeRequest(request_id=fresh("scheme"), scheme=scheme)
    return GroupsServiceStub(channel).PutScheme(request, timeout=TIMEOUT, **call).version


def put_campaign(channel: grpc.Channel, **call: Any) -> int:
    request = referral_pb.PutCampaignRequest(request_id=fresh("campaign"), campaign=a_campaign())
    return ReferralServiceStub(channel).PutCampaign(request, timeout=TIMEOUT, **call).version


PUTS: dict[str, Callable[..., int]] = {
    "points": put_programme,
    "cards": put_product,
    "groups": put_scheme,
    "referral": put_campaign,
}


def test_the_try_out_serves_who_holds_a_token_of_its_key(
    served: dict[str, str], dev: list[Document], service: str
) -> None:
    key = json.loads((DEV / "dev-only.jwk").read_text())
    claims = {
        "sub": "ops",
        "aud": settings_of(dev, serving_container(dev, service)).token_audience,
        "scope": f"{service}.admin",
        "exp": int(time.time()) + 3600,
    }
    token = jwt.encode(claims, jwt.PyJWK(key).key, algorithm="EdDSA", headers={"kid": key["kid"]})
    with grpc.insecure_channel(served[service]) as channel:
        put = PUTS[service]
        assert put(channel, metadata=(("authorization", f"Bearer {token}"),)) == 1
        with refused(grpc.StatusCode.UNAUTHENTICATED, "TOKEN_MISSING"):
            put(channel)


# --- the image ------------------------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    """The recipe's instructions: keyword and the rest."""
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines]


def test_the_image_stands_on_a_version_of_python_that_we_support() -> None:
    bases = {rest.split()[0] for keyword, rest in instructions() if keyword == "FROM"}
    [base] = bases
    version = re.fullmatch(r"python:3\.(\d+)\.\d+-slim-[a-z]+", base)
    assert version
    assert int(version[1]) >= 11


def test_the_image_runs_as_the_user_of_the_manifests() -> None:
    [user] = [rest for keyword, rest in instructions() if keyword == "USER"]
    for pod in pods(render("base")):
        context = pod["spec"]["securityContext"]
        assert user == f"{context['runAsUser']}:{context['runAsGroup']}"


def test_the_image_starts_the_server_without_a_shell_and_leaves_probing_to_the_kubelet() -> None:
    found = dict(instructions())
    container = serving_container(render("base"), "points")
    assert json.loads(found["CMD"]) == container["command"]
    assert not {"HEALTHCHECK", "ENTRYPOINT"} & found.keys()


def test_the_image_installs_only_what_the_lock_names_by_hash() -> None:
    [install] = [rest for keyword, rest in instructions() if keyword == "RUN" and "install" in rest]
    words = shlex.split(install)
    assert {"--require-hashes", "--no-cache-dir"} <= set(words)
    assert words[words.index("-r") + 1] == "/requirements-runtime.lock"


def test_the_image_gets_all_that_it_copies_and_nothing_else() -> None:
    copies = [
        rest.split()[0] for keyword, rest in instructions() if keyword == "COPY" and "--from" not in rest
    ]
    ignore = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] != "#"]
    assert ignore == ["*", *(f"!{path}" for path in copies), "**/__pycache__"]
    assert all((ROOT / path).exists() for path in copies)


# --- the runtime's lock ---------------------------------------------------------------------------------


def locked(name: str) -> dict[str, tuple[str, list[str]]]:
    """Version and hashes by name."""
    entries = re.split(r"\n(?=\S)", (ROOT / name).read_text().replace("\\\n", ""))
    found = {}
    for words in map(str.split, entries):
        package, version = words[0].split("==")
        found[package] = (version, [word for word in words if word.startswith("--hash=")])
    return found


def test_the_image_holds_the_very_versions_that_are_tested() -> None:
    runtime, everything = locked("requirements-runtime.lock"), locked("requirements.lock")
    assert runtime.items() <= everything.items()
    assert all(hashes for _version, hashes in runtime.values())
    assert "://" not in (ROOT / "requirements-runtime.lock").read_text()


def test_a_service_starts_with_nothing_but_what_the_image_holds(tmp_path: Path, service: str) -> None:
    for name in locked("requirements-runtime.lock"):
        with suppress(PackageNotFoundError):  # some are for other systems
            installed = distribution(name)
            for top in {file.parts[0] for file in installed.files or () if file.parts[0] != ".."}:
                if not (tmp_path / top).exists():  # several share the name `google`
                    (tmp_path / top).symlink_to(Path(str(installed.locate_file(top))))
    usage = subprocess.run(
        [sys.executable, "-S", "-m", f"services.{service}"],  # -S: without the environment's packages
        env={"PYTHONPATH": os.pathsep.join(map(str, (tmp_path, ROOT, ROOT / "proto/gen")))},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=START_TIMEOUT,
    )
    assert usage.stderr.startswith("usage: "), usage.stderr
