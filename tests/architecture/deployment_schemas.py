"""What the project's compose file and manifests may contain, as JSON schemas.

Stricter than the formats themselves: only the fields that are used are known, so a misspelled one is found, and what
production needs (a health check, a user that is not root, pinned images) is required.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

_TEXTS: Schema = {"type": "array", "items": {"type": "string"}, "minItems": 1}
_NAMES: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
_IMAGE: Schema = {"type": "string", "pattern": r"^[\w./-]+:[\w.-]*\d[\w.-]*$"}
_DURATION: Schema = {"type": "string", "pattern": r"^\d+(s|m|h)$"}
_QUANTITY: Schema = {"type": ["string", "integer"], "pattern": r"^\d+(m|Mi|Gi)?$"}


def closed(properties: dict[str, Schema], *required: str) -> Schema:
    """An object of exactly these fields."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def _listed(item: Schema) -> Schema:
    return {"type": "array", "items": item, "minItems": 1}


_HEALTHCHECK: Schema = {
    "oneOf": [
        closed({"disable": {"const": True}}, "disable"),
        closed(
            {
                "test": {"type": "array", "prefixItems": [{"enum": ["CMD", "CMD-SHELL"]}], "minItems": 2},
                "interval": _DURATION,
                "timeout": _DURATION,
                "start_period": _DURATION,
                "retries": {"type": "integer", "minimum": 1},
            },
            "test",
            "interval",
            "timeout",
            "retries",
        ),
    ]
}
_SERVICE = closed(
    {
        "image": _IMAGE,
        "build": closed({"context": {"const": "../.."}, "dockerfile": {"type": "string"}}, "context", "dockerfile"),
        "command": _TEXTS,
        "environment": _NAMES,
        "restart": {"enum": ["unless-stopped", "on-failure"]},
        "init": {"const": True},
        "read_only": {"const": True},
        "cap_drop": {"const": ["ALL"]},
        "security_opt": {"const": ["no-new-privileges:true"]},
        "tmpfs": _TEXTS,
        "volumes": _TEXTS,
        "ports": _listed({"type": "string", "pattern": r"^127\.0\.0\.1:\d+:\d+$"}),
        "shm_size": {"type": "string", "pattern": r"^\d+(mb|gb)$"},
        "stop_grace_period": _DURATION,
        "logging": closed({"driver": {"const": "json-file"}, "options": _NAMES}, "driver", "options"),
        "healthcheck": _HEALTHCHECK,
        "depends_on": {
            "type": "object",
            "additionalProperties": closed(
                {"condition": {"enum": ["service_healthy", "service_completed_successfully"]}}, "condition"
            ),
        },
        "deploy": closed(
            {
                "replicas": {"type": "integer", "minimum": 1},
                "resources": closed(
                    {
                        "reservations": closed(
                            {
                                "devices": _listed(
                                    closed(
                                        {
                                            "driver": {"const": "nvidia"},
                                            "count": {"const": "all"},
                                            "capabilities": {"const": ["gpu"]},
                                        },
                                        "driver",
                                        "count",
                                        "capabilities",
                                    )
                                )
                            },
                            "devices",
                        )
                    },
                    "reservations",
                ),
            }
        ),
    },
    "image",
    "command",
    "restart",
)
COMPOSE: Schema = {
    "type": "object",
    "properties": {
        "name": {"const": "batchsight"},
        "services": {"type": "object", "additionalProperties": _SERVICE},
        "volumes": {"type": "object"},
    },
    "patternProperties": {"^x-": {}},
    "required": ["name", "services", "volumes"],
    "additionalProperties": False,
}

_LABELS = closed(
    {"app.kubernetes.io/name": {"const": "batchsight"}, "app.kubernetes.io/component": {"type": "string"}},
    "app.kubernetes.io/name",
    "app.kubernetes.io/component",
)
_SELECTOR = closed({"matchLabels": _LABELS}, "matchLabels")
_PROBE = closed(
    {
        "httpGet": closed({"path": {"pattern": "^/"}, "port": {"const": "http"}}, "path", "port"),
        "periodSeconds": {"type": "integer"},
        "timeoutSeconds": {"type": "integer"},
        "failureThreshold": {"type": "integer"},
    },
    "httpGet",
    "periodSeconds",
)
_CONTAINER_PROPERTIES: dict[str, Schema] = {
    "name": {"type": "string"},
    "image": _IMAGE,
    "command": _TEXTS,
    "envFrom": {"const": [{"configMapRef": {"name": "batchsight"}}, {"secretRef": {"name": "batchsight"}}]},
    "env": _listed(closed({"name": {"type": "string"}, "value": {"type": "string"}}, "name", "value")),
    "ports": _listed(
        closed({"name": {"const": "http"}, "containerPort": {"type": "integer"}}, "name", "containerPort")
    ),
    "startupProbe": _PROBE,
    "readinessProbe": _PROBE,
    "livenessProbe": _PROBE,
    "securityContext": {
        "const": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
    },
    "resources": closed(
        {
            "requests": closed({"cpu": _QUANTITY, "memory": _QUANTITY}, "cpu", "memory"),
            "limits": closed({"memory": _QUANTITY, "nvidia.com/gpu": {"type": "integer"}}, "memory"),
        },
        "requests",
        "limits",
    ),
    "volumeMounts": _listed(
        closed(
            {"name": {"type": "string"}, "mountPath": {"pattern": "^/"}, "readOnly": {"const": True}},
            "name",
            "mountPath",
        )
    ),
}
_CONTAINER_NEEDS = ("name", "image", "command", "envFrom", "securityContext", "resources", "volumeMounts")
_VOLUME = {
    "oneOf": [
        closed(
            {
                "name": {"type": "string"},
                "emptyDir": closed({"medium": {"const": "Memory"}, "sizeLimit": _QUANTITY}),
            },
            "name",
            "emptyDir",
        ),
        closed(
            {
                "name": {"type": "string"},
                "persistentVolumeClaim": closed(
                    {"claimName": {"type": "string"}, "readOnly": {"const": True}}, "claimName", "readOnly"
                ),
            },
            "name",
            "persistentVolumeClaim",
        ),
    ]
}
_POD_SECURITY = closed(
    {
        "runAsNonRoot": {"const": True},
        "runAsUser": {"type": "integer", "minimum": 1000},
        "runAsGroup": {"type": "integer", "minimum": 1000},
        "fsGroup": {"type": "integer", "minimum": 1000},
        "seccompProfile": {"const": {"type": "RuntimeDefault"}},
    },
    "runAsNonRoot",
    "runAsUser",
    "runAsGroup",
    "seccompProfile",
)


def _pod(*container_needs: str, **fields: Schema) -> Schema:
    return closed(
        {
            "automountServiceAccountToken": {"const": False},
            "enableServiceLinks": {"const": False},
            "securityContext": _POD_SECURITY,
            "containers": _listed(closed(_CONTAINER_PROPERTIES, *_CONTAINER_NEEDS, *container_needs)),
            "volumes": _listed(_VOLUME),
            **fields,
        },
        "automountServiceAccountToken",
        "enableServiceLinks",
        "securityContext",
        "containers",
        "volumes",
        *(name for name in fields if name in {"restartPolicy", "terminationGracePeriodSeconds"}),
    )


def _object(api_version: str, kind: str, **fields: Schema) -> Schema:
    metadata = {
        "name": {"type": "string", "pattern": r"^[a-z][a-z0-9-]*$"},
        "namespace": {"const": "batchsight"},
        "labels": {"type": "object"},
    }
    return closed(
        {
            "apiVersion": {"const": api_version},
            "kind": {"const": kind},
            "metadata": closed(metadata, "name", *(() if kind == "Namespace" else ("namespace",))),
            **fields,
        },
        "apiVersion",
        "kind",
        "metadata",
        *fields,
    )


_TEMPLATE_METADATA = closed({"labels": _LABELS, "annotations": _NAMES}, "labels")
_RUNNING_POD = _pod(
    "ports",
    "startupProbe",
    "readinessProbe",
    "livenessProbe",
    terminationGracePeriodSeconds={"type": "integer", "minimum": 30},
    topologySpreadConstraints={"type": "array"},
    tolerations={"type": "array"},
)
_DEPLOYMENT = _object(
    "apps/v1",
    "Deployment",
    spec=closed(
        {
            "replicas": {"type": "integer", "minimum": 1},
            "strategy": {"const": {"type": "Recreate"}},
            "selector": _SELECTOR,
            "template": closed({"metadata": _TEMPLATE_METADATA, "spec": _RUNNING_POD}, "metadata", "spec"),
        },
        "replicas",
        "selector",
        "template",
    ),
)
_JOB = _object(
    "batch/v1",
    "Job",
    spec=closed(
        {
            "backoffLimit": {"type": "integer"},
            "ttlSecondsAfterFinished": {"type": "integer"},
            "template": closed(
                {"metadata": _TEMPLATE_METADATA, "spec": _pod(restartPolicy={"const": "OnFailure"})}, "metadata", "spec"
            ),
        },
        "template",
    ),
)
_SERVICE_OBJECT = _object(
    "v1",
    "Service",
    spec=closed(
        {
            "selector": _LABELS,
            "ports": _listed(
                closed(
                    {"name": {"const": "http"}, "port": {"type": "integer"}, "targetPort": {"const": "http"}},
                    "name",
                    "port",
                    "targetPort",
                )
            ),
        },
        "selector",
        "ports",
    ),
)
_BUDGET = _object(
    "policy/v1",
    "PodDisruptionBudget",
    spec=closed({"minAvailable": {"const": 1}, "maxUnavailable": {"const": 1}, "selector": _SELECTOR}, "selector"),
)
_CLAIM = _object(
    "v1",
    "PersistentVolumeClaim",
    spec=closed(
        {
            "accessModes": {"const": ["ReadWriteMany"]},
            "resources": closed({"requests": closed({"storage": _QUANTITY}, "storage")}, "requests"),
        },
        "accessModes",
        "resources",
    ),
)
KUBERNETES: dict[str, Schema] = {
    "Namespace": _object("v1", "Namespace"),
    "ConfigMap": _object("v1", "ConfigMap", data=_NAMES),
    "Secret": _object("v1", "Secret", type={"const": "Opaque"}, stringData=_NAMES),
    "PersistentVolumeClaim": _CLAIM,
    "Job": _JOB,
    "Deployment": _DEPLOYMENT,
    "Service": _SERVICE_OBJECT,
    "PodDisruptionBudget": _BUDGET,
}
