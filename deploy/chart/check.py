#!/usr/bin/env python3
"""Checks the chart without a cluster: see deploy/chart-test, which runs this.

Long because it is the chart's whole test: rendering, schemas, the programs' names, rights and refusals.
"""
import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zipfile

import jsonschema
import kubernetes_validate
import yaml

CHART = pathlib.Path(__file__).resolve().parent
DEPLOY = CHART.parent
ROOT = DEPLOY.parent
SHARED_CRDS = ROOT.parent / "shared/inputs/crds"

KUBERNETES = ["1.29", "1.33", "1.37"]

# What pods of Jobs take as well as those of services.
PLACEMENT = {"nodeSelector": {"kubernetes.io/arch": "amd64"}, "tolerations": [{"key": "pool", "operator": "Exists"}],
             "podAnnotations": {"sidecar.istio.io/inject": "false"}, "podLabels": {"team": "data"}, "env": [{"name": "TZ", "value": "UTC"}]}

# What is rendered: values files of examples, and further values.
TOKENS = {"serve": {"tokensSecret": {"name": "taskrunning-tokens"}}}
CONFIGURATIONS = {
    "minimal": (["minimal"], {}),
    "operators": (["strimzi", "cloudnativepg", "keda"], TOKENS),
    "mysql": (["mysql"], {}),
    # What the others leave out.
    "further": (["minimal", "strimzi"], {
        "kafka": {"config": {"client.rack": "a"}, "caSecret": {"name": "ca"}},
        "schemaRegistry": {"url": "http://registry.example:8081"}, "schemasConfigMap": "newer-schemas",
        "image": {"pullSecrets": ["registry"]}, "scaling": {"trigger": "kafka"}, "serviceAccountName": "taskrunning", "priorityClassName": "high",
        "strimzi": {"apiVersion": "kafka.strimzi.io/v1beta2", "optionalRights": True},
        "migration": {"enabled": False}, "expire": {"olderThan": "8w", "timeZone": "Europe/Berlin"},
        "router": {"env": [{"name": "ON_NO_OFFSET", "value": "fail"}, {"name": "ROUTER_GROUP", "value": "task-running-info-router-b"}],
                   "autoscaling": {"enabled": True}, "podLabels": {"team": "data"}, "nodeSelector": {"pool": "a"},
                   "tolerations": [{"key": "pool", "operator": "Exists"}], "podAnnotations": {"a": "b"},
                   "image": {"digest": "sha256:" + "0" * 64}},
        "consumer": {"args": ["--part", "progress"], "affinity": {"nodeAffinity": {}}},
        "serve": {"tokensSecret": {"name": ""}, "userHeader": "X-User", "trustedProxies": ["10.0.0.1", "10.1.0.0/16"], "operators": ["ada"],
                  "allowHosts": ["tasks.example"], "allowOrigins": ["https://portal.example"], "tlsSecret": "tls",
                  "httpRoute": {"enabled": True, "parentRefs": [{"name": "gateway"}], "hostnames": ["tasks.example"]}},
        "networkPolicy": {"kafkaPorts": [9093], "databasePorts": [6432], "serveFrom": [{"podSelector": {}}],
                          "kafkaTo": [{"podSelector": {}}], "databaseTo": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]},
    }),
    # Rules of a company's clusters: labels on everything, tainted nodes, a mesh, certificates of cert-manager, large numbers.
    "platform": (["minimal", "keda"], {
        "commonLabels": {"cost-center": "42"},
        "kafka": {"partitions": 2_000_000, "config": {"queue.buffering.max.kbytes": 1_048_576, "enable.metrics.push": False},
                  "users": {user: {"certificateSecret": f"{user}-tls"} for user in ("router", "consumer", "router-audit", "consumer-audit")},
                  "certificateKeys": {"certificate": "tls.crt", "key": "tls.key"}},
        "database": {"reader": {"url": "postgres://reader@replica.example:6432/taskrunning?sslmode=verify-full&sslrootcert=/etc/taskrunning/replica.crt",
                                "secret": "taskrunning-reader"}},
        "files": [{"secret": "replica-ca", "key": "ca.crt", "path": "replica.crt"}],
        "migration": {"activeDeadlineSeconds": 2_000_000} | PLACEMENT, "expire": {"olderThan": "30d", "schedule": "@weekly"} | PLACEMENT,
        "audit": {"activeDeadlineSeconds": 1_000_000} | PLACEMENT, "router": {"autoscaling": {"lagPerReplica": 1_000_000}, "replicas": 0, "annotations": {"reloader.stakater.com/auto": "true"}},
        "consumer": {"annotations": {"reloader.stakater.com/auto": "true"}},
        "serve": {"replicas": 1, "annotations": {"reloader.stakater.com/auto": "true"}},
        "scaling": {"prometheus": {"metadata": {"authModes": "bearer"}},
                    "secretTargetRef": [{"parameter": "bearerToken", "name": "prometheus", "key": "token"}]},
        "monitoring": {"podMonitor": {"labels": {"release": "prometheus"}}},
        "networkPolicy": {"egress": [{"ports": [{"port": 5353, "protocol": "UDP"}]}, {"to": [{"podSelector": {}}]}]},
    }),
}

# Values that have to be refused, beside minimal ones, with words of the error.
REFUSED = [
    ({"kafka": {"bootstrapServers": ""}}, "kafka.bootstrapServers is required"),
    ({"database": {"writer": {"url": ""}}}, "database.writer.url is required"),
    ({"database": {"writer": {"url": "postgres://ada:secret@db/tasks"}}}, "oes not match pattern"),
    ({"database": {"writer": {"url": "sqlite:tasks.db"}}}, "oes not match pattern"),
    ({"schemaRegistry": {"url": "http://ada:secret@registry"}}, "oes not match pattern"),
    ({"kafka": {"config": {"sasl.password": "secret"}}}, "sasl.password"),
    ({"router": {"env": [{"name": "PGPASSWORD", "value": "secret"}]}}, "env"),
    ({"router": {"replicas": 9}}, "router.replicas (9) exceeds kafka.partitions (8)"),
    ({"consumer": {"autoscaling": {"enabled": True, "maxReplicas": 9}}}, "consumer.autoscaling.maxReplicas (9) exceeds kafka.partitions (8)"),
    ({"consumer": {"autoscaling": {"enabled": True, "minReplicas": 9}}}, "minReplicas exceeds"),
    ({"consumer": {"autoscaling": {"enabled": True}}}, "scaling.prometheus.serverAddress is required"),
    ({"serve": {"tokensSecret": {"name": ""}}}, "serve.tokensSecret.name or serve.userHeader is required"),
    ({"serve": {"userHeader": "X-User"}}, "serve.trustedProxies is required"),
    ({"serve": {"userHeader": "X-User", "trustedProxies": ["0.0.0.0/0"]}}, "trustedProxies"),
    ({"serve": {"ingress": {"enabled": True}}}, "serve.ingress.host is required"),
    ({"serve": {"httpRoute": {"enabled": True}}}, "serve.httpRoute.parentRefs is required"),
    ({"strimzi": {"enabled": True}}, "strimzi.cluster is required"),
    ({"strimzi": {"enabled": True, "cluster": "c", "users": ["nobody"]}}, "deploy/kafka/acls has no user nobody"),
    ({"migration": {"grants": {"enabled": True}}, "database": {"writer": {"url": "mysql://a@db/tasks"}}}, "deploy/mysql/grants.sql"),
    ({"kafka": {"users": {"router": {"configSecret": "a", "certificateSecret": "b"}}}}, "not both"),
    ({"router": {"replica": 3}}, "replica"),
    ({"serve": None}, "missing property 'serve'"),
    ({"router": {"args": None}}, "missing property 'args'"),
    ({"enabled": False}, "enabled"),
    ({"router": {"args": ["--max-records", 20000]}}, "got number, want string"),
    ({"router": {"env": [{"name": "METRICS_LISTEN", "value": "0.0.0.0:9000"}]}}, "METRICS_LISTEN is given twice"),
    ({"router": {"podLabels": {"app.kubernetes.io/component": "a"}}}, "invalid propertyName 'app.kubernetes.io/component'"),
    ({"commonLabels": {"app.kubernetes.io/name": "a"}}, "invalid propertyName 'app.kubernetes.io/name'"),
    ({"serve": {"podAnnotations": {"kubectl.kubernetes.io/default-container": "a"}}}, "invalid propertyName 'kubectl"),
    ({"router": {"resources": {"limits": {"memory": "1Gi"}}}}, "requests.memory (384Mi) and limits.memory (1Gi) have to be equal"),
    ({"audit": {"resources": {"requests": {"memory": "1Gi"}}}}, "have to be equal"),
    ({"database": {"writer": {"url": "postgres://ada@db/tasks?sslmode=require&password=secret"}}}, "database/writer/url"),
    ({"kafka": {"config": {"schema.registry.url": "http://ada:secret@registry"}}}, "schema.registry.url"),
    ({"database": {"writer": {"url": "postgres://ada@db/tasks?sslrootcert=/etc/taskrunning/database-ca.crt"}}},
     "names /etc/taskrunning/database-ca.crt, which is not mounted"),
    ({"kafka": {"config": {"ssl.ca.location": "/etc/taskrunning/ca.crt"}}}, "names /etc/taskrunning/ca.crt, which is not mounted"),
    ({"files": [{"secret": "a", "key": "b", "path": "kafka.conf"}]}, "/etc/taskrunning/kafka.conf is mounted already"),
    ({"migration": {"grants": {"enabled": True}}}, "has no rights for taskrunning of database"),
    ({"kafka": {"bootstrapServers": "a:9092, b:9092"}}, "kafka/bootstrapServers"),
    ({"audit": {"router": {"schedule": "daily"}}}, "audit/router/schedule"),
    ({"database": {"owner": {"secret": "owner"}}}, "database.owner.url is required by its secret"),
    ({"database": {"writer": {"url": "", "secret": ""}}, "consumer": {"enabled": False}, "serve": {"enabled": False}}, "or disable migration and expire"),
    ({"fullnameOverride": "a.b"}, "cannot be a Service's"),
    ({"fullnameOverride": "4"}, "cannot be a Service's"),
    ({"terminationGracePeriodSeconds": 10}, "terminationGracePeriodSeconds"),
]

# Go modules whose archives hold custom resource definitions: group, version, checksum of go.sum, folder.
CRD_MODULES = {
    "github.com/kedacore/keda/v2": ("keda.sh", "v2.18.1", "h1:h6bRt/IOxxtZpJlHSqhdH/lcInH7Z9obxg/JvWOmGAw=", "config/crd/bases"),
    "github.com/prometheus-operator/prometheus-operator": (
        "monitoring.coreos.com", "v0.85.0", "h1:M5xLCLEoaW2IJfnuCwFzzpL+jSVQu3KGT84Pye+fW8s=", "example/prometheus-operator-crd"),
    "github.com/cloudnative-pg/cloudnative-pg": (
        "postgresql.cnpg.io", "v1.27.1", "h1:w+bbtXyEPoaa7sZGXxbb8qJ+/bUGWQ3M48kbNUEpKlk=", "config/crd/bases"),
    "sigs.k8s.io/gateway-api": ("gateway.networking.k8s.io", "v1.4.0", "h1:ZwlNM6zOHq0h3WUX2gfByPs2yAEsy/EenYJB78jpQfQ=", "config/crd/standard"),
}

faults = []


def fault(text):
    faults.append(text)
    print(f"FAULT    {text}", file=sys.stderr)


def note(text):
    print(f"         {text}")


def main(helm, programs, out):
    crds, parameters, missing = definitions(out)
    for group in missing:
        note(f"Skipping {group}: {missing[group]}")
    released = re.search(r'^version = "(.*)"', (ROOT / "Cargo.toml").read_text(), re.M)[1]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    if chart["appVersion"] != released:
        fault(f"Chart.yaml: appVersion is {chart['appVersion']}, Cargo.toml has {released}")

    kept = {}
    for name, (files, further) in CONFIGURATIONS.items():
        values = out / f"{name}.values.yaml"
        values.write_text(yaml.safe_dump(further))
        options = [option for file in files for option in ("--values", CHART / f"examples/{file}.yaml")] + ["--values", values]
        lint = run(helm, "lint", "--strict", "--quiet", CHART, *options)
        if lint.returncode:
            fault(f"{name}: helm lint: {lint.stdout}{lint.stderr}")
        for version in KUBERNETES:
            rendered = run(helm, "template", "taskrunning", CHART, "--namespace", "monitoring-tasks", "--kube-version", version, *options)
            if rendered.returncode:
                fault(f"{name}: helm template: {rendered.stderr}")
                break
            resources = [r for r in yaml.load_all(rendered.stdout, strict_loader()) if r]
            valid(name, resources, version, crds, missing)
        else:
            (out / f"{name}.yaml").write_text(rendered.stdout)
            consistent(name, resources)
            secured(name, resources)
            named(name, resources, programs)
            scaled(name, resources, parameters)
            rights(name, resources, optional=further.get("strimzi", {}).get("optionalRights", False))
            alerts(name, resources, out)
            upgrades(name, resources, kept)
            note(f"{name}: {len(resources)} resources")
    long = run(helm, "template", "r" * 53, CHART, "--values", CHART / "examples/minimal.yaml", "--values", out / "operators.values.yaml")
    consistent("a long name", [r for r in yaml.safe_load_all(long.stdout) if r])
    packaged(helm, out)
    cluster = yaml.safe_load((CHART / "examples/cloudnativepg-cluster.yaml").read_text())
    valid("cloudnativepg-cluster.yaml", [cluster], KUBERNETES[-1], crds, missing)
    cluster_fits(cluster)
    complete()
    refuses(helm, out)
    answers(programs, out)
    connects(programs, out)


def run(*command, **options):
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=300, check=False, **options)


def strict_loader():
    """A key that is written twice hides the first."""

    class Strict(yaml.SafeLoader):
        pass

    def mapping(loader, node):
        keys = [loader.construct_object(key) for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            fault(f"line {node.start_mark.line}: {twice} twice")
        return loader.construct_mapping(node, deep=True)

    Strict.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    return Strict


# ---- Schemas.


def definitions(out):
    """Schemas of custom resources; parameters of KEDA's triggers; and what cannot be had, with the reason."""
    texts, parameters, missing = [], {}, {}
    for module, (group, version, checksum, folder) in CRD_MODULES.items():
        try:
            download = run("go", "mod", "download", "-json", f"{module}@{version}", cwd=out)
            answer = json.loads(download.stdout or "{}")
        except (OSError, ValueError, subprocess.TimeoutExpired) as error:
            answer = {"Error": str(error)}
        if answer.get("Error"):
            missing[group] = answer["Error"]
        elif answer.get("Sum") != checksum:
            fault(f"{module}@{version}: its checksum is {answer.get('Sum')}")
        else:
            with zipfile.ZipFile(answer["Zip"]) as archive:
                texts += [archive.read(file) for file in archive.namelist() if f"@{version}/{folder}/" in file and file.endswith(".yaml")]
                if "keda" in module:
                    for trigger in "kafka", "prometheus":
                        source = archive.read(f"{module}@{version}/pkg/scalers/{trigger}_scaler.go").decode()
                        parameters[trigger] = set(re.findall(r'(?<=name=)\w+|(?<=")\w+', source))
    strimzi = sorted(SHARED_CRDS.glob("strimzi-*.yaml"))
    if strimzi:
        texts += [file.read_text() for file in strimzi]
    else:
        missing["kafka.strimzi.io"] = "its definitions are in no package; they are read from ../shared/inputs/crds"
    loader = type("Loader", (yaml.CSafeLoader,), {})
    loader.add_constructor("tag:yaml.org,2002:value", loader.construct_yaml_str)  # PyYAML's own fault: a plain = is text
    schemas = {}
    for text in texts:
        for crd in yaml.load_all(text, loader):
            if not crd or crd.get("kind") != "CustomResourceDefinition":
                continue
            for version in crd["spec"]["versions"]:
                schema = version["schema"]["openAPIV3Schema"]
                schemas[crd["spec"]["group"], crd["spec"]["names"]["kind"], version["name"]] = strict(schema)
    if ("kafka.strimzi.io", "KafkaTopic", "v1") in schemas:
        for kind in "KafkaTopic", "KafkaUser":  # what the chart uses is the same in both versions
            schemas["kafka.strimzi.io", kind, "v1beta2"] = schemas["kafka.strimzi.io", kind, "v1"]
    return schemas, parameters, missing


def strict(schema):
    """A server drops unknown fields, without a word; here they are faults."""
    if not isinstance(schema, dict):
        return schema
    result = {}
    for key, value in schema.items():
        if key in ("properties", "patternProperties"):
            result[key] = {name: strict(sub) for name, sub in value.items()}
        elif key in ("allOf", "anyOf", "oneOf", "not"):
            result[key] = value  # they only add conditions
        elif key in ("items", "additionalProperties"):
            result[key] = strict(value)
        elif key not in ("description", "format", "default"):
            result[key] = value
    if schema.get("x-kubernetes-int-or-string"):
        result.pop("type", None)
    if schema.get("nullable") and "type" in result:
        result["type"] = [result["type"], "null"]
    if "properties" in schema and "additionalProperties" not in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        result["additionalProperties"] = False
    return result


def valid(name, resources, version, crds, missing):
    for resource in resources:
        group, _, api = resource["apiVersion"].rpartition("/")
        what = f"{name}: {resource['kind']} {resource['metadata']['name']}"
        if "." not in group or group.endswith(".k8s.io") and not group.startswith("gateway."):
            try:
                kubernetes_validate.validate(resource, version, strict=True)
            except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError, jsonschema.ValidationError) as error:
                fault(f"{what}: Kubernetes {version}: {error}")
        elif (group, resource["kind"], api) in crds:
            for error in jsonschema.Draft7Validator(crds[group, resource["kind"], api]).iter_errors(resource):
                fault(f"{what}: {error.json_path}: {error.message}")
        elif group not in missing:
            fault(f"{what}: no schema of {group} {api}")


# ---- What belongs together.


def pods(resources):
    """(resource, pod template) of each."""
    for resource in resources:
        spec = resource.get("spec", {})
        template = spec.get("jobTemplate", {}).get("spec", {}).get("template") or spec.get("template")
        if template and resource["kind"] in ("StatefulSet", "Deployment", "Job", "CronJob"):
            yield resource, template


def containers(template):
    return template["spec"].get("initContainers", []) + template["spec"]["containers"]


def selects(selector, template):
    labels = template["metadata"]["labels"]
    if "matchLabels" not in selector and "matchExpressions" not in selector:
        selector = {"matchLabels": selector}
    return all(labels.get(k) == v for k, v in selector.get("matchLabels", {}).items()) and all(
        labels.get(e["key"]) in e["values"] for e in selector.get("matchExpressions", []))


def port_names(template):
    return {port["name"] for container in template["spec"]["containers"] for port in container.get("ports", [])}


def consistent(name, resources):
    names = {(r["kind"], r["metadata"]["name"]) for r in resources}
    if len(names) != len(resources):
        fault(f"{name}: two resources have one kind and name")
    if not names:
        fault(f"{name}: nothing is rendered")
    for kind, own in names:
        if len(own) > (52 if kind == "CronJob" else 63):
            fault(f"{name}: the name of {kind} {own} is too long")
    templates = list(pods(resources))
    for resource in resources:
        kind, spec, what = resource["kind"], resource.get("spec", {}), f"{name}: {resource['kind']} {resource['metadata']['name']}"
        selector = {"Service": spec.get("selector"), "NetworkPolicy": spec.get("podSelector"), "PodDisruptionBudget": spec.get("selector"),
                    "PodMonitor": spec.get("selector")}.get(kind)
        if selector:
            selected = [template for _, template in templates if selects(selector, template)]
            if not selected:
                fault(f"{what} selects no pod")
            wanted = [p["targetPort"] for p in spec.get("ports", [])] if kind == "Service" else []
            wanted += [p["port"] for rule in spec.get("ingress", []) for p in rule["ports"]] if kind == "NetworkPolicy" else []
            wanted += [e["port"] for e in spec.get("podMetricsEndpoints", [])]
            for template in selected:
                if not set(wanted) <= port_names(template):
                    fault(f"{what}: no port {set(wanted) - port_names(template)}")
        if kind == "PodDisruptionBudget" and (spec.get("unhealthyPodEvictionPolicy"), spec.get("maxUnavailable")) != ("AlwaysAllow", 1):
            fault(f"{what} can block a drain")
        if kind == "StatefulSet" and (spec["podManagementPolicy"] != "Parallel" or ("Service", spec["serviceName"]) not in names):
            fault(f"{what}: not Parallel, or without its Service")
        if kind == "Ingress":
            for rule in spec["rules"]:
                for path in rule["http"]["paths"]:
                    if ("Service", path["backend"]["service"]["name"]) not in names:
                        fault(f"{what}: no such Service")
        if kind == "HTTPRoute" and ("Service", spec["rules"][0]["backendRefs"][0]["name"]) not in names:
            fault(f"{what}: no such Service")
    for resource, template in templates:
        what = f"{name}: {resource['kind']} {resource['metadata']['name']}"
        for kind in ["NetworkPolicy"] + (["PodDisruptionBudget"] if resource["kind"] in ("StatefulSet", "Deployment") else []):
            count = sum(r["kind"] == kind and selects(r["spec"].get("podSelector") or r["spec"]["selector"], template) for r in resources)
            if count != 1:
                fault(f"{what}: {count} of {kind} select it")
        if "selector" in resource["spec"] and not selects(resource["spec"]["selector"], template):
            fault(f"{what} does not select its own pods")
        job = resource["spec"].get("jobTemplate", resource)["spec"]
        for rule in job.get("podFailurePolicy", {}).get("rules", []):
            if rule.get("onExitCodes", {}).get("containerName") not in {None} | {c["name"] for c in containers(template)}:
                fault(f"{what}: podFailurePolicy names another container")
        volumes = {v["name"]: v for v in template["spec"].get("volumes", [])}
        for container in containers(template):
            if {m["name"] for m in container["volumeMounts"]} != set(volumes):
                fault(f"{what}: {container['name']} does not mount the pod's volumes")
        for source in volumes.get("config", {}).get("projected", {}).get("sources", []):
            if "configMap" in source:
                own = next((r for r in resources if (r["kind"], r["metadata"]["name"]) == ("ConfigMap", source["configMap"]["name"])), None)
                keys = {item["key"] for item in source["configMap"].get("items", [])}
                if own is None or not keys <= set(own["data"]):
                    fault(f"{what}: no ConfigMap {source['configMap']['name']} with {keys}")
                elif not before(own, resource):
                    fault(f"{what}: a hook whose ConfigMap is created after it")
        for policy in (r for r in resources if r["kind"] == "NetworkPolicy" and selects(r["spec"]["podSelector"], template)):
            if not before(policy, resource):
                fault(f"{what}: a hook whose NetworkPolicy is created after it")
        files_exist(what, resources, template)


def before(first, second):
    """Whether first is there when second starts: Helm creates hooks before everything else, by their weights."""
    first, second = (r["metadata"].get("annotations", {}) for r in (first, second))
    if "helm.sh/hook" not in second:
        return "helm.sh/hook" not in first
    events = [set(hook.get("helm.sh/hook", "").split(",")) for hook in (first, second)]
    return events[1] <= events[0] and int(first["helm.sh/hook-weight"]) < int(second["helm.sh/hook-weight"])


def upgrades(name, resources, kept):
    """What a server refuses to change is the same whatever the values are; and a new version of the chart alone restarts nothing."""
    for resource in resources:
        spec, key = resource.get("spec", {}), (resource["kind"], resource["metadata"]["name"])
        if resource["kind"] == "StatefulSet":
            changes = {"replicas", "template", "updateStrategy", "minReadySeconds", "revisionHistoryLimit", "ordinals"}
            fixed = {field: value for field, value in spec.items() if field not in changes}
        elif resource["kind"] in ("Deployment", "Service"):
            fixed = {field: spec.get(field) for field in ("selector", "clusterIP")}
        else:
            continue
        if kept.setdefault(key, fixed) != fixed:
            fault(f"{name}: {key} cannot be changed from {kept[key]} to {fixed}")
    for resource, template in pods(resources):
        if {"helm.sh/chart", "app.kubernetes.io/version"} & template["metadata"]["labels"].keys():
            fault(f"{name}: {resource['kind']} {resource['metadata']['name']}: a label of its pods changes with the chart's version")
        common = {"cost-center"} & resources[0]["metadata"]["labels"].keys()
        if not all(common <= labels.keys() for labels in (resource["metadata"]["labels"], template["metadata"]["labels"])):
            fault(f"{name}: {resource['kind']} {resource['metadata']['name']}: not all of commonLabels")
        if name == "platform" and resource["kind"] in ("StatefulSet", "Deployment") and not resource["metadata"].get("annotations"):
            fault(f"{name}: {resource['kind']} {resource['metadata']['name']}: without its annotations")
        given = [resource["metadata"]["name"], template["spec"].get("nodeSelector"), template["metadata"]["annotations"].get("sidecar.istio.io/inject")]
        if name == "platform" and resource["kind"] in ("Job", "CronJob") and None in given:
            fault(f"{name}: {resource['kind']} {given[0]}: without its nodeSelector or podAnnotations")


def packaged(helm, out):
    """`helm package` follows the links to the files of other folders."""
    package = run(helm, "package", CHART, "--destination", out)
    options = ["--values", CHART / "examples/minimal.yaml"] + ["--values", out / "operators.values.yaml", "--set", "monitoring.rules.enabled=true"]
    texts = [run(helm, "template", "t", chart, *options) for chart in (CHART, next(out.glob("*.tgz"), "none"))]
    if package.returncode or texts[0].returncode or texts[0].stdout != texts[1].stdout:
        fault(f"helm package: not the same chart: {package.stderr}{texts[0].stderr}{texts[1].stderr}")


def files_exist(what, resources, template):
    """Each file that a setting names is one of a volume's."""
    files = {"/run/taskrunning/pgpass"}
    texts = []
    for volume in template["spec"].get("volumes", []):
        for source in volume.get("projected", {}).get("sources", []):
            held = source.get("secret") or source["configMap"]
            own = next((r for r in resources if "configMap" in source and (r["kind"], r["metadata"]["name"]) == ("ConfigMap", held["name"])), None)
            items = held.get("items") or [{"key": key, "path": key} for key in own["data"]]
            files |= {f"/etc/taskrunning/{item['path']}" for item in items}
            texts += [own["data"][item["key"]] for item in items if own]
    for text in texts:
        if "ssl.certificate.location" in text and not re.search("^security.protocol=(SASL_)?SSL$", text, re.M):
            fault(f"{what}: a client certificate without TLS: {text}")
    for container in containers(template):
        texts += [str(e.get("value", "")) for e in container.get("env", [])] + [str(a) for a in container.get("command", [])]
    for text in texts:
        for file in re.findall(r"/(?:etc|run)/taskrunning/[\w./-]+", text):
            if file not in files:
                fault(f"{what}: {file} is not mounted")


# ---- Security.


def secured(name, resources):
    if any(r["kind"] == "Secret" for r in resources):
        fault(f"{name}: a Secret is rendered; values would hold it")
    for resource, template in pods(resources):
        what, pod = f"{name}: {resource['kind']} {resource['metadata']['name']}", template["spec"]
        security = pod["securityContext"]
        user = re.search(r"^USER (\d+):(\d+)$", (DEPLOY / "Dockerfile").read_text(), re.M)
        if not user or (security["runAsUser"], security["runAsGroup"]) != (int(user[1]), int(user[2])):
            fault(f"{what}: another user than the image's")
        if not security["runAsNonRoot"] or security["seccompProfile"]["type"] != "RuntimeDefault":
            fault(f"{what}: may be root, or has no seccomp profile")
        if pod["automountServiceAccountToken"] or pod["enableServiceLinks"]:
            fault(f"{what}: gets a token, or variables of services")
        if pod["terminationGracePeriodSeconds"] != 60:
            fault(f"{what}: not 60 s to stop")
        for container in containers(template):
            own = container["securityContext"]
            if own != {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}:
                fault(f"{what}: securityContext of {container['name']}")
            if container["resources"]["requests"]["memory"] != container["resources"]["limits"]["memory"]:
                fault(f"{what}: memory request and limit differ")
            for variable in container.get("env", []):
                if "secretKeyRef" in variable.get("valueFrom", {}) or re.search("PASSWORD|_PWD$|USER_INFO|TOKEN$", variable["name"]):
                    fault(f"{what}: {variable['name']} holds a secret")
            if container.get("envFrom"):
                fault(f"{what}: envFrom")
        probes = [pod["containers"][0].get(probe) for probe in ("startupProbe", "livenessProbe", "readinessProbe")]
        if resource["kind"] in ("StatefulSet", "Deployment"):
            if [probe["httpGet"]["path"] for probe in probes] != ["/livez", "/livez", "/readyz"]:
                fault(f"{what}: probes")


# ---- Names of the programs.


def named(name, resources, programs):
    numbers = re.findall(r"^.*\b[0-9.]+e\+[0-9]+\b.*$", yaml.safe_dump(resources), re.M)
    if numbers:
        fault(f"{name}: numbers that Kubernetes and the programs do not take: {numbers}")
    without_option = set(re.findall(r"`([A-Z_]+)`", (ROOT / "docs/src/reference/configuration.md").read_text().split("These have no option")[1]))
    for resource, template in pods(resources):
        what = f"{name}: {resource['kind']} {resource['metadata']['name']}"
        for container in containers(template):
            image = container["image"].rsplit("/", 1)[-1]
            if "command" in container or not image.startswith("taskrunning-"):
                continue
            program = re.split("[:@]", image.removeprefix("taskrunning-"))[0]
            arguments = [str(a) for a in container["args"]] + ["--help"] if container.get("args") else ["--help"]
            command = run(programs / program, *arguments)
            if command.returncode:
                fault(f"{what}: {program} {' '.join(arguments)}: {command.stderr}")
                continue
            variables = {v["name"]: v.get("value") for v in container["env"]}
            known = set(re.findall(r"\[env: ([A-Z_]+)", command.stdout)) | without_option | {"TZ"}
            for variable in variables.keys() - known:
                fault(f"{what}: {program} {' '.join(arguments)} knows no {variable}")
            ports = {p["name"]: p["containerPort"] for p in container.get("ports", [])}
            listens = {"metrics": "METRICS_LISTEN", "http": "SERVE_LISTEN"}
            if ports != {port: int(variables[v].rsplit(":", 1)[1]) for port, v in listens.items() if v in variables}:
                fault(f"{what}: ports {ports} are not those that {program} listens on")


METRICS = re.compile(r"\b((?:taskrunning|messaging|db_client|http_server)_[a-z_]+)\b(?!=)")


def scaled(name, resources, parameters):
    documented = set(METRICS.findall((ROOT / "docs/src/operating/metrics.md").read_text()))
    labels = {"messaging_destination_name", "messaging_destination_partition_id"}
    topics = {line.split()[0] for line in (DEPLOY / "kafka/topics").read_text().splitlines() if line and line[0] != "#"}
    partitions = next((r["spec"]["partitions"] for r in resources if r["kind"] == "KafkaTopic"), 8)
    for resource in resources:
        if resource["kind"] == "ScaledObject":
            spec, what = resource["spec"], f"{name}: ScaledObject {resource['metadata']['name']}"
            target = next((r for r in resources if (r["kind"], r["metadata"]["name"]) == (spec["scaleTargetRef"]["kind"], spec["scaleTargetRef"]["name"])), None)
            if target is None or "replicas" in target["spec"]:
                fault(f"{what}: no such target, or each upgrade sets its replicas")
            if spec["maxReplicaCount"] > partitions or spec["minReplicaCount"] < 1:
                fault(f"{what}: more members than partitions, or none")
            for trigger in spec["triggers"]:
                metadata = trigger["metadata"]
                if not all(isinstance(value, str) for value in metadata.values()):
                    fault(f"{what}: KEDA takes text only: {metadata}")
                if "topic" in metadata and metadata["topic"] not in topics:
                    fault(f"{what}: no topic {metadata['topic']}")
                program = target["spec"]["template"]["spec"]["containers"][0] if target else {}
                groups = [v["value"] for v in program.get("env", []) if v["name"].endswith("_GROUP")] or ["task-running-info-" + program.get("name", "")]
                if metadata.get("consumerGroup", groups[0]) != groups[0]:
                    fault(f"{what}: its group is not {groups[0]}")
                unknown = metadata.keys() - parameters[trigger["type"]] if parameters else set()
                if unknown or "://" in metadata.get("bootstrapServers", ""):
                    fault(f"{what}: KEDA knows no {unknown}, or no such address: {metadata}")
                reference = trigger.get("authenticationRef")
                if reference and not any((r["kind"], r["metadata"]["name"]) == ("TriggerAuthentication", reference["name"]) for r in resources):
                    fault(f"{what}: no {reference['name']}")
        text = json.dumps(resource) if resource["kind"] in ("ScaledObject", "PrometheusRule") else ""
        for metric in set(METRICS.findall(text)) - labels:
            if re.sub("_(bucket|sum|count)$", "", metric) not in documented:
                fault(f"{name}: {resource['kind']}: no metric {metric}")


# ---- Rights and topics.


def rights(name, resources, optional):
    users = [r for r in resources if r["kind"] == "KafkaUser"]
    if not users:
        return
    expected = set()
    for line in (DEPLOY / "kafka/acls").read_text().splitlines():
        words = (line.removeprefix("# ") if optional else line).split()
        if len(words) > 3 and words[1] in ("topic", "group", "transactional-id"):
            expected |= {(words[0], *words[1:3], operation) for operation in words[3:]}
    kinds = {"topic": "topic", "group": "group", "transactionalId": "transactional-id"}
    found = set()
    for user in users:
        for acl in user["spec"]["authorization"]["acls"]:
            resource = acl["resource"]
            full = resource["name"] + ("*" if resource["patternType"] == "prefix" else "")
            found |= {(user["metadata"]["name"].removeprefix("taskrunning-"), kinds[resource["type"]], full, o) for o in acl["operations"]}
    wanted = {right for right in expected if right[0] in {u["metadata"]["name"].removeprefix("taskrunning-") for u in users}}
    if found != wanted or not found:
        fault(f"{name}: rights differ from deploy/kafka/acls: {found ^ wanted}")
    lines = [line.split() for line in (DEPLOY / "kafka/topics").read_text().splitlines() if line and line[0] != "#"]
    topics = {r["metadata"]["name"]: r for r in resources if r["kind"] == "KafkaTopic"}
    config = {topic: [t["spec"]["config"]["max.message.bytes"], t["spec"]["config"]["retention.ms"]] for topic, t in topics.items()}
    if config != {line[0]: [int(line[1]), int(line[2])] for line in lines}:
        fault(f"{name}: topics differ from deploy/kafka/topics: {config}")
    if any(t["metadata"]["annotations"].get("helm.sh/resource-policy") != "keep" for t in topics.values()):
        fault(f"{name}: helm uninstall would delete topics")
    # Each member's transactional id has a prefix that its user may write.
    for member, group in (("router", "task-running-info-router-"), ("consumer", "task-running-info-consumer")):
        if not any(right[0] == member and right[1] == "transactional-id" and group.startswith(right[2].rstrip("*")) for right in found):
            fault(f"{name}: {member} may not use its transactional id")


def alerts(name, resources, out):
    for rule in (r for r in resources if r["kind"] == "PrometheusRule"):
        file = out / f"{name}.rules.yml"
        file.write_text(yaml.safe_dump({"groups": rule["spec"]["groups"]}))
        check = run("promtool", "check", "rules", file)
        if check.returncode:
            fault(f"{name}: promtool: {check.stdout}{check.stderr}")
        test = out / f"{name}.test.yml"
        test.write_text(yaml.safe_dump(on_kubernetes(file.name)))
        check = run("promtool", "test", "rules", test)
        if check.returncode and name == "operators":  # with its deadlines
            fault(f"{name}: promtool: {check.stdout}{check.stderr}")
        own = yaml.safe_load((DEPLOY / "observe/alerts.yml").read_text())["groups"]
        if rule["spec"]["groups"][: len(own)] != own:
            fault(f"{name}: alerts differ from deploy/observe/alerts.yml")
        runbook = (ROOT / "docs/src/operating/runbook.md").read_text()
        for alert in (r["alert"] for group in rule["spec"]["groups"] for r in group["rules"]):
            if f"\n### {alert}\n" not in runbook:
                fault(f"{name}: the runbook has no entry for {alert}")
    jobs = {job for r in resources if r["kind"] == "PodMonitor" for e in r["spec"]["selector"]["matchExpressions"] for job in e["values"]}
    if jobs and (jobs != {"router", "consumer", "serve"} or any(
            r["spec"]["jobLabel"] != "app.kubernetes.io/component" for r in resources if r["kind"] == "PodMonitor")):
        fault(f"{name}: the alerts expect other jobs")


def on_kubernetes(file):
    """Test of the alerts on Kubernetes. Pods are missing; and in ten days, one job runs weekly, one fails since its second day, one is not started any more."""
    day = 86400
    series = []
    for job, metrics in {
        "expire": {"status_last_schedule_time": "86400x6 691200x3", "status_last_successful_time": "87000x6 691800x3", "next_schedule_time": "691200x6 1296000x3"},
        "router-audit": {"status_last_schedule_time": "0+86400x9", "status_last_successful_time": "600x9", "next_schedule_time": "86400+86400x9"},
        "consumer-audit": {"status_last_schedule_time": "0x9", "status_last_successful_time": "600x9", "next_schedule_time": "86400x9"},
    }.items():
        for metric, values in metrics.items():
            labels = f'{{namespace="monitoring-tasks",cronjob="taskrunning-{job}"}}'
            # promtool keeps a value for five minutes only: each day's is repeated each minute.
            daily = []
            for part in values.split():
                start, _, times = part.partition("x")
                first, _, step = start.partition("+")
                daily += [int(first) + int(step or 0) * i for i in range(int(times) + 1)]
            series.append({"series": f"kube_cronjob_{metric}{labels}", "values": " ".join(f"{value}x{day // 60 - 1}" for value in daily)})

    for kind, name, ready, wanted in ("statefulset", "router", 1, 2), ("statefulset", "consumer", 0, 0), ("deployment", "serve", 0, 1):
        labels = f'{{namespace="monitoring-tasks",{kind}="taskrunning-{name}"}}'
        specified = "kube_statefulset_replicas" if kind == "statefulset" else "kube_deployment_spec_replicas"
        series += [{"series": f"kube_{kind}_status_replicas_ready{labels}", "values": f"{ready}x60"}, {"series": specified + labels, "values": f"{wanted}x60"}]

    def missing(kind, name, ready):
        return {"exp_labels": {"severity": "warning", "namespace": "monitoring-tasks", kind: name},
                "exp_annotations": {"summary": f"only {ready} pods of {name} are ready",
                                    "description": "kubectl describe pod says why a pod does not start; its log and /readyz say why it is not ready."}}

    def firing(job):
        return {"exp_labels": {"severity": "warning", "namespace": "monitoring-tasks", "cronjob": f"taskrunning-{job}"},
                "exp_annotations": {"summary": f"taskrunning-{job} was due and has not succeeded",
                                    "description": "It did not run, or failed; kubectl get jobs lists its runs."}}

    times = {"20h": [], "9d20h": ["router-audit", "consumer-audit"]}
    pods_missing = {"eval_time": "30m", "alertname": "TaskRunningPodsMissing", "exp_alerts": [
        missing("statefulset", "taskrunning-router", 1), missing("deployment", "taskrunning-serve", 0)]}
    return {"rule_files": [file], "evaluation_interval": "10m", "tests": [{"interval": "1m", "input_series": series, "alert_rule_test": [
        pods_missing] + [
        {"eval_time": time, "alertname": "TaskRunningJobOverdue", "exp_alerts": [firing(job) for job in jobs]} for time, jobs in times.items()]}]}


def cluster_fits(cluster):
    """The example of a database cluster is the one that the example of values connects to."""
    database = yaml.safe_load((CHART / "examples/cloudnativepg.yaml").read_text())["database"]
    name, init = cluster["metadata"]["name"], cluster["spec"]["bootstrap"]["initdb"]
    secrets = {role["name"]: role["passwordSecret"]["name"] for role in cluster["spec"]["managed"]["roles"]} | {init["owner"]: f"{name}-app"}
    grants = set(re.findall(r" TO (\w+);", (DEPLOY / "postgres/grants.sql").read_text()))
    for role in "writer", "reader", "owner":
        user, host, base = re.match(r"postgres://(\w+)@([\w-]+)/(\w+)", database[role]["url"]).groups()
        if (host, base, database[role]["secret"]) != (f"{name}-rw", init["database"], secrets.get(user)):
            fault(f"examples/cloudnativepg.yaml: {role} does not fit cloudnativepg-cluster.yaml")
        if role != "owner" and user not in grants:
            fault(f"examples/cloudnativepg.yaml: deploy/postgres/grants.sql has no {user}")


def complete():
    """Each value has a default and a type, and a value that is removed (null) is missed by the schema, not by a template."""
    schema = json.loads((CHART / "values.schema.json").read_text())

    def same(path, values, part):
        part = schema["definitions"][part["$ref"].removeprefix("#/definitions/")] if "$ref" in part else part
        if part.get("additionalProperties") is False:
            names = part["properties"].keys() - ({"global", "enabled"} if part is schema else set())
            if names != values.keys() or set(part.get("required", [])) != names:
                fault(f"values.schema.json: {path}: {names ^ values.keys() or names ^ set(part.get('required', []))}")
            for name in names & values.keys():
                if isinstance(values[name], dict):
                    same(f"{path}.{name}", values[name], part["properties"][name])

    same("values", yaml.safe_load((CHART / "values.yaml").read_text()), schema)


def refuses(helm, out):
    # Whatever the programs take for a secret is none of the chart's values.
    secrets = re.search(r"const SECRETS: .*?= &\[(.*?)\];", (ROOT / "service/src/kafka/options.rs").read_text(), re.S)[1]
    settings = re.findall(r'"(.+?)"', secrets)
    if not settings:
        fault("service/src/kafka/options.rs: no SECRETS")
    schema = json.loads((CHART / "values.schema.json").read_text())["properties"]["kafka"]["properties"]["config"]
    for setting in settings:
        if jsonschema.Draft7Validator(schema).is_valid({f"ssl{setting}" if setting[0] == "." else setting: "a"}):
            fault(f"kafka.config takes the secret {setting}")
    for values, words in REFUSED:
        file = out / "refused.values.yaml"
        file.write_text(yaml.safe_dump(values))
        rendered = run(helm, "template", "t", CHART, "--values", CHART / "examples/minimal.yaml", "--values", file)
        if not rendered.returncode or words not in rendered.stderr:
            fault(f"{values} is not refused with {words!r}: {rendered.stderr}")
    note(f"{len(REFUSED)} wrong values are refused")


# ---- The programs themselves.


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def wait_for(what, seconds, condition, log):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.1)
    fault(f"waited {seconds} s for {what}: {log()}")
    return False


def answers(programs, out):
    """The paths of probes and scrapes, asked of a program with the chart's variables."""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        url = f"sqlite:{folder}/tasks.db"
        run(programs / "consumer", "migrate", "--database-url", url)
        (folder / "tokens").write_text("sha256:" + "0" * 64 + " operator\n")
        metrics, http = free_port(), free_port()
        log = (folder / "log").open("w+")
        settings = {"METRICS_LISTEN": f"127.0.0.1:{metrics}", "SERVE_LISTEN": f"0.0.0.0:{http}", "SERVE_TOKENS": f"{folder}/tokens",
                    "DATABASE_URL": url, "LOG_FORMAT": "json", "LOG_LEVEL": "info"}
        with subprocess.Popen([programs / "consumer", "serve"], env=os.environ | settings, stderr=log) as server:
            def get(path, port=metrics):
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                        return answer.status, answer.read().decode()
                except urllib.error.HTTPError as error:
                    return error.code, ""
                except OSError:
                    return 0, ""

            said = lambda: (folder / "log").read_text()
            if wait_for("/livez", 120, lambda: get("/livez")[0] == 200 or server.poll() is not None, said):
                wait_for("/readyz", 120, lambda: get("/readyz")[0] == 200 or server.poll() is not None, said)
                for path, port, status in ("/livez", metrics, 200), ("/readyz", metrics, 200), ("/metrics", metrics, 200), ("/api/v1/status", http, 401):
                    if get(path, port)[0] != status:
                        fault(f"{path} is answered with {get(path, port)[0]}: {said()}")
                if "taskrunning_ready 1" not in get("/metrics")[1]:
                    fault("/metrics has no taskrunning_ready")
            server.terminate()
            if server.wait(60):
                fault(f"serve: SIGTERM: exit code {server.returncode}")


def connects(programs, out):
    """The rendered kafka.conf is one that the programs take: the next thing is a connection."""
    rendered = yaml.safe_load_all((out / "operators.yaml").read_text()) if (out / "operators.yaml").exists() else []
    conf = next((r["data"]["router.conf"] for r in rendered if r and r["kind"] == "ConfigMap" and "router.conf" in r["data"]), None)
    if conf is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=router",
            "-keyout", folder / "kafka-user.key", "-out", folder / "kafka-user.crt")
        (folder / "kafka-ca.crt").write_text((folder / "kafka-user.crt").read_text())
        for file, text in ("tls", conf.replace("/etc/taskrunning", str(folder))), ("empty", "\n"):
            (folder / file).write_text(text)
            log = (folder / "log").open("w+")
            with subprocess.Popen([programs / "router", "--bootstrap-servers", f"127.0.0.1:{free_port()}", "--kafka-config", folder / file],
                                  stderr=log, stdout=log) as router:
                said = lambda: (folder / "log").read_text()
                wait_for(f"a router with {file} to look for Kafka", 120, lambda: "does not answer" in said() or router.poll() is not None, said)
                if router.poll() is not None:
                    fault(f"a router does not take {text!r}: {said()}")
                router.kill()


if __name__ == "__main__":
    out = pathlib.Path(sys.argv[3])
    main(sys.argv[1], pathlib.Path(sys.argv[2]).resolve(), out)
    if faults:
        sys.exit(f"{len(faults)} faults")
