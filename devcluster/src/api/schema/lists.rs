//! How the lists of built-in types merge. The generated schemas do not carry
//! `x-kubernetes-list-type` and `x-kubernetes-patch-merge-key`, so they are said here
//! (source: the OpenAPI document of Kubernetes 1.33).

use std::sync::Arc;

use super::{ListKind, Schema};

enum Merge {
    /// Keyed by these fields; a strategic merge patch uses the first.
    Keys(&'static [&'static str]),
    /// Items are scalars, each owned on its own.
    Set,
}
use Merge::{Keys, Set};

const LISTS: &[(&str, &str, Merge)] = &[
    ("meta.v1.ObjectMeta", "finalizers", Set),
    ("meta.v1.ObjectMeta", "ownerReferences", Keys(&["uid"])),
    ("core.v1.PodSpec", "containers", Keys(&["name"])),
    ("core.v1.PodSpec", "initContainers", Keys(&["name"])),
    ("core.v1.PodSpec", "ephemeralContainers", Keys(&["name"])),
    ("core.v1.PodSpec", "volumes", Keys(&["name"])),
    ("core.v1.PodSpec", "imagePullSecrets", Keys(&["name"])),
    ("core.v1.PodSpec", "hostAliases", Keys(&["ip"])),
    ("core.v1.PodSpec", "schedulingGates", Keys(&["name"])),
    ("core.v1.PodSpec", "resourceClaims", Keys(&["name"])),
    ("core.v1.PodSpec", "topologySpreadConstraints", Keys(&["topologyKey", "whenUnsatisfiable"])),
    ("core.v1.PodStatus", "conditions", Keys(&["type"])),
    ("core.v1.PodStatus", "podIPs", Keys(&["ip"])),
    ("core.v1.PodStatus", "hostIPs", Keys(&["ip"])),
    ("core.v1.Container", "env", Keys(&["name"])),
    ("core.v1.Container", "ports", Keys(&["containerPort", "protocol"])),
    ("core.v1.Container", "volumeMounts", Keys(&["mountPath"])),
    ("core.v1.Container", "volumeDevices", Keys(&["devicePath"])),
    ("core.v1.ResourceRequirements", "claims", Keys(&["name"])),
    ("core.v1.ServiceSpec", "ports", Keys(&["port", "protocol"])),
    ("core.v1.ServiceStatus", "conditions", Keys(&["type"])),
    ("core.v1.ServiceAccount", "secrets", Keys(&["name"])),
    ("core.v1.NodeStatus", "addresses", Keys(&["type"])),
    ("core.v1.NodeStatus", "conditions", Keys(&["type"])),
    ("core.v1.NodeSpec", "podCIDRs", Set),
    ("core.v1.NamespaceStatus", "conditions", Keys(&["type"])),
    ("core.v1.PersistentVolumeClaimStatus", "conditions", Keys(&["type"])),
    ("apps.v1.DeploymentStatus", "conditions", Keys(&["type"])),
    ("apps.v1.ReplicaSetStatus", "conditions", Keys(&["type"])),
    ("apps.v1.StatefulSetStatus", "conditions", Keys(&["type"])),
    ("policy.v1.PodDisruptionBudgetStatus", "conditions", Keys(&["type"])),
    ("meta.v1.Condition", "conditions", Keys(&["type"])),
];

/// Maps that are owned as a whole.
const ATOMIC_MAPS: &[&str] = &[
    "meta.v1.LabelSelector",
    "core.v1.ObjectReference",
    "core.v1.TypedLocalObjectReference",
    "core.v1.NodeSelector",
    "core.v1.NodeSelectorTerm",
    "core.v1.SecretReference",
    "core.v1.LocalObjectReference",
    "core.v1.SecretKeySelector",
    "core.v1.ConfigMapKeySelector",
    "core.v1.ObjectFieldSelector",
    "core.v1.ResourceFieldSelector",
    "core.v1.ScopeSelector",
    "core.v1.ConfigMapNodeConfigSource",
];

/// Fields that are owned as a whole although their type is a map.
const ATOMIC_FIELDS: &[(&str, &str)] = &[
    ("core.v1.ServiceSpec", "selector"),
    ("core.v1.PodSpec", "nodeSelector"),
    ("core.v1.ReplicationControllerSpec", "selector"),
];

/// Keys of lists that have a default, without which items could not be told apart.
const KEY_DEFAULTS: &[(&str, &str, &str)] =
    &[("core.v1.ContainerPort", "protocol", "TCP"), ("core.v1.ServicePort", "protocol", "TCP")];

/// Puts the merge rules of the definition `name` on its parsed schema.
pub fn mark(name: &str, schema: &mut Schema) {
    if ATOMIC_MAPS.iter().any(|known| name.ends_with(known)) {
        schema.map_atomic = true;
    }
    for (definition, field, merge) in LISTS {
        if !name.ends_with(definition) {
            continue;
        }
        // Property nodes of lists are written in place, so they are not shared yet.
        let Some(node) = schema.properties.get_mut(*field).and_then(Arc::get_mut) else { continue };
        match merge {
            Set => node.list = ListKind::Set,
            Keys(keys) => {
                node.list = ListKind::Map(keys.iter().map(|key| (*key).to_owned()).collect());
                node.merge_key = keys.first().map(|key| (*key).to_owned());
            }
        }
    }
    for (definition, field, default) in KEY_DEFAULTS {
        if name.ends_with(definition)
            && let Some(node) = schema.properties.get_mut(*field).and_then(Arc::get_mut)
        {
            node.default = Some((*default).into());
        }
    }
    for (definition, field) in ATOMIC_FIELDS {
        if name.ends_with(definition)
            && let Some(node) = schema.properties.get_mut(*field).and_then(Arc::get_mut)
        {
            node.map_atomic = true;
        }
    }
}
