"""Writes the JSON schemas that kubeconform needs, each in one file without references, which it does not follow.

usage: deploy_schemas.py FOLDER VERSION KEDA.yaml MANIFEST...

Into FOLDER go the schemas of Kubernetes VERSION for the kinds in the MANIFESTs, from the package kubernetes-validate,
and that of the CustomResourceDefinition KEDA.yaml.
"""

import json
import sys
from pathlib import Path

import kubernetes_validate
import yaml

SCHEMAS = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema"


def standalone(schema, definitions):
    """The schema with what it refers to put in. None of the kinds here contains itself."""
    if isinstance(schema, list):
        return [standalone(part, definitions) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return standalone(definitions[schema["$ref"].rsplit("/", 1)[1]], definitions)
    return {key: standalone(part, definitions) for key, part in schema.items()}


def closed(schema):
    """The schema of a custom resource, refusing members that it does not name, as the API server warns of them."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: closed(part) for key, part in schema.items()}
    if schema.pop("x-kubernetes-int-or-string", False):
        return {"oneOf": [{"type": "string"}, {"type": "integer"}]}
    free = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object" and not free:
        schema["additionalProperties"] = False
    return schema


def file_name(api_version, kind):
    """`deployment-apps-v1.json`, as kubeconform asks for it."""
    group, _, version = api_version.rpartition("/")
    parts = [kind.lower(), group.partition(".")[0], version]
    return "-".join(part for part in parts if part) + ".json"


def main():
    folder, version, keda, *manifests = sys.argv[1:]
    source, target = SCHEMAS / f"v{version}-local-strict", Path(folder)
    definitions = json.loads((source / "_definitions.json").read_text())["$defs"]
    objects = [found for path in manifests for found in yaml.safe_load_all(Path(path).read_text()) if found]
    for name in sorted({file_name(found["apiVersion"], found["kind"]) for found in objects}):
        if (source / name).exists():
            schema = standalone(json.loads((source / name).read_text()), definitions)
            (target / name).write_text(json.dumps(schema))
    spec = yaml.safe_load(Path(keda).read_text())["spec"]
    schema = closed(spec["versions"][0]["schema"]["openAPIV3Schema"])
    # The API server's own part, which the definition leaves open.
    schema["properties"]["metadata"] = {"type": "object"}
    api_version = f"{spec['group']}/{spec['versions'][0]['name']}"
    (target / file_name(api_version, spec["names"]["kind"])).write_text(json.dumps(schema))


main()
