"""What the manifests for Kubernetes promise: they are valid, and they and the program speak of the same things."""

import json
import re
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]  # it has no types
import pytest
import yaml

from app import health, scrape
from app.intake.router import PREFIX
from app.ledger.writer import WriterLimits
from app.serving import GRACE
from app.settings import Settings, _SecretFiles

ROOT = Path(__file__).parents[2]
PLACE = ROOT / "deploy/kubernetes"
MANIFESTS = {path.name: list(yaml.safe_load_all(path.read_text())) for path in sorted(PLACE.glob("*.yaml"))}
OBJECTS = [one for manifests in MANIFESTS.values() for one in manifests if one["kind"] != "Kustomization"]
FACES = ["callbacks", "api"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def an_object(kind: str, name: str) -> dict[str, Any]:
    [one] = [one for one in OBJECTS if one["kind"] == kind and one["metadata"]["name"] == name]
    found: dict[str, Any] = one
    return found


def container_of(face: str) -> dict[str, Any]:
    [container] = an_object("Deployment", face)["spec"]["template"]["spec"]["containers"]
    found: dict[str, Any] = container
    return found


@pytest.mark.parametrize("version", ["1.30", "1.37"])
@pytest.mark.parametrize("manifest", OBJECTS, ids=lambda one: f"{one['kind']} {one['metadata']['name']}")
def test_every_manifest_is_valid(manifest: dict[str, Any], version: str) -> None:
    """By the schemas of the oldest version that knows all of it, and of the newest."""
    kubernetes_validate.validate(manifest, version, strict=True)


def test_kustomize_is_told_of_every_manifest_but_the_example() -> None:
    [kustomization] = MANIFESTS["kustomization.yaml"]
    assert {*kustomization["resources"]} == MANIFESTS.keys() - {"kustomization.yaml", "secret.example.yaml"}
    assert [image["name"] for image in kustomization["images"]] == [container_of("api")["image"]]


def test_the_two_faces_differ_in_their_name_and_roles_alone() -> None:
    def neutral(kind: str, face: str) -> str:
        return re.sub(rf'"{face}"', '"FACE"', json.dumps(an_object(kind, face)).replace("api,dashboard", face))

    for kind in ("Deployment", "Service", "PodDisruptionBudget"):
        assert neutral(kind, "callbacks") == neutral(kind, "api")


def test_together_the_faces_serve_every_role() -> None:
    roles = [
        role
        for face in FACES
        for given in container_of(face)["env"]
        if given["name"] == "ROLES"
        for role in given["value"].split(",")
    ]
    assert sorted(roles) == sorted(Settings.model_fields["roles"].default)


def test_every_variable_is_a_setting() -> None:
    given = {variable["name"].removesuffix("_FILE") for variable in container_of("api")["env"]}
    given |= an_object("ConfigMap", "jasper-receiver")["data"].keys() - {"FORWARDED_ALLOW_IPS"}
    assert given <= {name.upper() for name in Settings.model_fields}


def test_the_example_of_the_secret_has_every_secret_and_each_is_given_as_a_file() -> None:
    assert an_object("Secret", "jasper-receiver")["stringData"].keys() == set(_SecretFiles.NAMES)
    container = container_of("api")
    mount = container["volumeMounts"][0]
    files = {variable["name"]: variable["value"] for variable in container["env"] if variable["name"].endswith("_FILE")}
    assert files == {f"{name.upper()}_FILE": f"{mount['mountPath']}/{name}" for name in _SecretFiles.NAMES}
    volume = an_object("Deployment", "api")["spec"]["template"]["spec"]["volumes"][0]
    assert volume["name"] == mount["name"]
    assert volume["secret"]["secretName"] == "jasper-receiver"


def test_what_is_configured_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in an_object("ConfigMap", "jasper-receiver")["data"].items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("JASPER_API_TOKEN", "token")
    monkeypatch.chdir(tmp_path)
    assert Settings.load().names_jasper


@pytest.mark.parametrize("face", FACES)
def test_probes_and_prometheus_ask_at_addresses_and_ports_that_exist(face: str) -> None:
    container = container_of(face)
    [port] = container["ports"]
    assert f"EXPOSE {port['containerPort']}" in DOCKERFILE
    paths = {route.path for room in (health, scrape) for route in room.router.routes if hasattr(route, "path")}
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        asked = container[probe]["httpGet"]
        assert asked["path"] in paths
        assert asked["port"] == port["name"]
    assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    annotations = an_object("Deployment", face)["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/path"] in paths
    assert annotations["prometheus.io/port"] == str(port["containerPort"])


@pytest.mark.parametrize("face", FACES)
def test_labels_lead_from_the_service_and_the_policies_to_the_pods(face: str) -> None:
    deployment = an_object("Deployment", face)["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    assert deployment["selector"]["matchLabels"] == labels
    assert an_object("Service", face)["spec"]["selector"] == labels
    assert an_object("PodDisruptionBudget", face)["spec"]["selector"]["matchLabels"] == labels
    assert an_object("NetworkPolicy", face)["spec"]["podSelector"]["matchLabels"] == labels
    assert an_object("Service", face)["spec"]["ports"][0]["targetPort"] == container_of(face)["ports"][0]["name"]


def test_nothing_but_callbacks_comes_in_from_outside_and_as_large_as_is_allowed() -> None:
    ingress = an_object("Ingress", "callbacks")
    [rule] = ingress["spec"]["rules"]
    [path] = rule["http"]["paths"]
    assert path["backend"]["service"]["name"] == "callbacks"
    assert f"{path['path']}/" == PREFIX
    [size] = [value for name, value in ingress["metadata"]["annotations"].items() if name.endswith("body-size")]
    assert int(size) == Settings.model_fields["max_body_bytes"].default
    assert [one for one in OBJECTS if one["kind"] == "Ingress"] == [ingress]
    host = an_object("ConfigMap", "jasper-receiver")["data"]["PUBLIC_URL"].removeprefix("https://")
    assert rule["host"] == host
    assert ingress["spec"]["tls"][0]["hosts"] == [host]


@pytest.mark.parametrize("face", FACES)
def test_a_pod_is_given_the_time_it_takes_to_end(face: str) -> None:
    pod = an_object("Deployment", face)["spec"]["template"]["spec"]
    pause = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] > pause + GRACE + WriterLimits().drain


@pytest.mark.parametrize("face", FACES)
def test_a_pod_may_do_nothing_that_the_receiver_does_not_need(face: str) -> None:
    pod = an_object("Deployment", face)["spec"]["template"]["spec"]
    [user] = re.findall(r"^USER (\d+):\d+$", DOCKERFILE, re.MULTILINE)
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] == int(user)
    assert pod["automountServiceAccountToken"] is False
    security = pod["containers"][0]["securityContext"]
    assert security["readOnlyRootFilesystem"]
    assert not security["allowPrivilegeEscalation"]
    assert security["capabilities"] == {"drop": ["ALL"]}


@pytest.mark.parametrize("face", FACES)
def test_the_workers_of_a_pod_have_a_directory_for_what_they_count(face: str) -> None:
    [name] = [mount["name"] for mount in container_of(face)["volumeMounts"] if mount["mountPath"] == "/tmp"]  # noqa: S108
    volumes = {one["name"]: one for one in an_object("Deployment", face)["spec"]["template"]["spec"]["volumes"]}
    assert volumes[name]["emptyDir"]["sizeLimit"]


@pytest.mark.parametrize("face", FACES)
def test_a_change_of_pods_leaves_no_moment_without_one(face: str) -> None:
    deployment = an_object("Deployment", face)["spec"]
    assert deployment["replicas"] >= 2
    assert deployment["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert an_object("PodDisruptionBudget", face)["spec"]["minAvailable"] >= 1
