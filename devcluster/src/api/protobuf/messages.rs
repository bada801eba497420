//! Field numbers of the messages that are read (source: the `generated.proto` files of
//! Kubernetes' API packages).

use Kind::{
    Bool, Empty, Ignored, Int, IntOrText, Many, MapOfBytes, MapOfQuantity, MapOfText, One,
    SomeBool, SomeInt, SomeText, Text, Texts, Time,
};

/// How a field is written in JSON. Plain kinds leave out their zero value, as Go does;
/// `Some` kinds are pointers in Go, and keep it.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    Text,
    SomeText,
    Int,
    SomeInt,
    Bool,
    SomeBool,
    Time,
    IntOrText,
    /// A message, left out when it is empty.
    One(&'static str),
    /// A message, kept also when it is empty.
    Empty(&'static str),
    Many(&'static str),
    Texts,
    MapOfText,
    MapOfBytes,
    MapOfQuantity,
    /// Not read: status in requests.
    Ignored,
}

/// Name, and number, JSON name and kind of each field.
pub type Message = (&'static str, &'static [(u8, &'static str, Kind)]);

pub const MESSAGES: &[Message] = &[
    (
        "ObjectMeta",
        &[
            (1, "name", Text),
            (2, "generateName", Text),
            (3, "namespace", Text),
            (4, "selfLink", Text),
            (5, "uid", Text),
            (6, "resourceVersion", Text),
            (7, "generation", Int),
            (8, "creationTimestamp", Time),
            (9, "deletionTimestamp", Time),
            (10, "deletionGracePeriodSeconds", SomeInt),
            (11, "labels", MapOfText),
            (12, "annotations", MapOfText),
            (13, "ownerReferences", Many("OwnerReference")),
            (14, "finalizers", Texts),
        ],
    ),
    (
        "OwnerReference",
        &[
            (1, "kind", Text),
            (3, "name", Text),
            (4, "uid", Text),
            (5, "apiVersion", Text),
            (6, "controller", SomeBool),
            (7, "blockOwnerDeletion", SomeBool),
        ],
    ),
    (
        "LabelSelector",
        &[(1, "matchLabels", MapOfText), (2, "matchExpressions", Many("LabelSelectorRequirement"))],
    ),
    ("LabelSelectorRequirement", &[(1, "key", Text), (2, "operator", Text), (3, "values", Texts)]),
    (
        "DeleteOptions",
        &[
            (1, "gracePeriodSeconds", SomeInt),
            (2, "preconditions", One("Preconditions")),
            (3, "orphanDependents", SomeBool),
            (4, "propagationPolicy", SomeText),
            (5, "dryRun", Texts),
        ],
    ),
    ("Preconditions", &[(1, "uid", SomeText), (2, "resourceVersion", SomeText)]),
    ("Eviction", &[(1, "metadata", One("ObjectMeta")), (2, "deleteOptions", One("DeleteOptions"))]),
    (
        "Namespace",
        &[
            (1, "metadata", One("ObjectMeta")),
            (2, "spec", One("NamespaceSpec")),
            (3, "status", Ignored),
        ],
    ),
    ("NamespaceSpec", &[(1, "finalizers", Texts)]),
    (
        "ConfigMap",
        &[
            (1, "metadata", One("ObjectMeta")),
            (2, "data", MapOfText),
            (3, "binaryData", MapOfBytes),
            (4, "immutable", SomeBool),
        ],
    ),
    (
        "Secret",
        &[
            (1, "metadata", One("ObjectMeta")),
            (2, "data", MapOfBytes),
            (3, "type", Text),
            (4, "stringData", MapOfText),
            (5, "immutable", SomeBool),
        ],
    ),
    (
        "ServiceAccount",
        &[
            (1, "metadata", One("ObjectMeta")),
            (3, "imagePullSecrets", Many("LocalObjectReference")),
            (4, "automountServiceAccountToken", SomeBool),
        ],
    ),
    ("LocalObjectReference", &[(1, "name", Text)]),
    (
        "Service",
        &[
            (1, "metadata", One("ObjectMeta")),
            (2, "spec", One("ServiceSpec")),
            (3, "status", Ignored),
        ],
    ),
    (
        "ServiceSpec",
        &[
            (1, "ports", Many("ServicePort")),
            (2, "selector", MapOfText),
            (3, "clusterIP", Text),
            (4, "type", Text),
            (5, "externalIPs", Texts),
            (7, "sessionAffinity", Text),
            (8, "loadBalancerIP", Text),
            (9, "loadBalancerSourceRanges", Texts),
            (10, "externalName", Text),
            (11, "externalTrafficPolicy", Text),
            (13, "publishNotReadyAddresses", Bool),
            (17, "ipFamilyPolicy", SomeText),
            (18, "clusterIPs", Texts),
            (19, "ipFamilies", Texts),
            (22, "internalTrafficPolicy", SomeText),
        ],
    ),
    (
        "ServicePort",
        &[
            (1, "name", Text),
            (2, "protocol", Text),
            (3, "port", Int),
            (4, "targetPort", IntOrText),
            (5, "nodePort", Int),
            (6, "appProtocol", SomeText),
        ],
    ),
    ("PodTemplateSpec", &[(1, "metadata", One("ObjectMeta")), (2, "spec", One("PodSpec"))]),
    (
        "PodSpec",
        &[
            (2, "containers", Many("Container")),
            (3, "restartPolicy", Text),
            (4, "terminationGracePeriodSeconds", SomeInt),
            (5, "activeDeadlineSeconds", SomeInt),
            (6, "dnsPolicy", Text),
            (7, "nodeSelector", MapOfText),
            (8, "serviceAccountName", Text),
            (9, "serviceAccount", Text),
            (10, "nodeName", Text),
            (15, "imagePullSecrets", Many("LocalObjectReference")),
            (19, "schedulerName", Text),
            (20, "initContainers", Many("Container")),
        ],
    ),
    (
        "Container",
        &[
            (1, "name", Text),
            (2, "image", Text),
            (3, "command", Texts),
            (4, "args", Texts),
            (5, "workingDir", Text),
            (6, "ports", Many("ContainerPort")),
            (7, "env", Many("EnvVar")),
            (8, "resources", Empty("ResourceRequirements")),
            (13, "terminationMessagePath", Text),
            (14, "imagePullPolicy", Text),
            (16, "stdin", Bool),
            (17, "stdinOnce", Bool),
            (18, "tty", Bool),
            (20, "terminationMessagePolicy", Text),
        ],
    ),
    (
        "ContainerPort",
        &[
            (1, "name", Text),
            (2, "hostPort", Int),
            (3, "containerPort", Int),
            (4, "protocol", Text),
            (5, "hostIP", Text),
        ],
    ),
    ("EnvVar", &[(1, "name", Text), (2, "value", Text)]),
    ("ResourceRequirements", &[(1, "limits", MapOfQuantity), (2, "requests", MapOfQuantity)]),
    (
        "Deployment",
        &[
            (1, "metadata", One("ObjectMeta")),
            (2, "spec", One("DeploymentSpec")),
            (3, "status", Ignored),
        ],
    ),
    (
        "DeploymentSpec",
        &[
            (1, "replicas", SomeInt),
            (2, "selector", One("LabelSelector")),
            (3, "template", One("PodTemplateSpec")),
            (4, "strategy", One("DeploymentStrategy")),
            (5, "minReadySeconds", Int),
            (6, "revisionHistoryLimit", SomeInt),
            (7, "paused", Bool),
            (9, "progressDeadlineSeconds", SomeInt),
        ],
    ),
    (
        "DeploymentStrategy",
        &[(1, "type", Text), (2, "rollingUpdate", One("RollingUpdateDeployment"))],
    ),
    ("RollingUpdateDeployment", &[(1, "maxUnavailable", IntOrText), (2, "maxSurge", IntOrText)]),
    (
        "Job",
        &[(1, "metadata", One("ObjectMeta")), (2, "spec", One("JobSpec")), (3, "status", Ignored)],
    ),
    (
        "JobSpec",
        &[
            (1, "parallelism", SomeInt),
            (2, "completions", SomeInt),
            (3, "activeDeadlineSeconds", SomeInt),
            (4, "selector", One("LabelSelector")),
            (5, "manualSelector", SomeBool),
            (6, "template", One("PodTemplateSpec")),
            (7, "backoffLimit", SomeInt),
            (8, "ttlSecondsAfterFinished", SomeInt),
            (9, "completionMode", SomeText),
            (10, "suspend", SomeBool),
        ],
    ),
    (
        "CronJob",
        &[
            (1, "metadata", One("ObjectMeta")),
            (2, "spec", One("CronJobSpec")),
            (3, "status", Ignored),
        ],
    ),
    (
        "CronJobSpec",
        &[
            (1, "schedule", Text),
            (2, "startingDeadlineSeconds", SomeInt),
            (3, "concurrencyPolicy", Text),
            (4, "suspend", SomeBool),
            (5, "jobTemplate", One("JobTemplateSpec")),
            (6, "successfulJobsHistoryLimit", SomeInt),
            (7, "failedJobsHistoryLimit", SomeInt),
            (8, "timeZone", SomeText),
        ],
    ),
    ("JobTemplateSpec", &[(1, "metadata", One("ObjectMeta")), (2, "spec", One("JobSpec"))]),
    (
        "ResourceQuota",
        &[
            (1, "metadata", One("ObjectMeta")),
            (2, "spec", One("ResourceQuotaSpec")),
            (3, "status", Ignored),
        ],
    ),
    ("ResourceQuotaSpec", &[(1, "hard", MapOfQuantity), (2, "scopes", Texts)]),
    (
        "PodDisruptionBudget",
        &[
            (1, "metadata", One("ObjectMeta")),
            (2, "spec", One("PodDisruptionBudgetSpec")),
            (3, "status", Ignored),
        ],
    ),
    (
        "PodDisruptionBudgetSpec",
        &[
            (1, "minAvailable", IntOrText),
            (2, "selector", One("LabelSelector")),
            (3, "maxUnavailable", IntOrText),
        ],
    ),
    ("Role", &[(1, "metadata", One("ObjectMeta")), (2, "rules", Many("PolicyRule"))]),
    ("ClusterRole", &[(1, "metadata", One("ObjectMeta")), (2, "rules", Many("PolicyRule"))]),
    (
        "PolicyRule",
        &[
            (1, "verbs", Texts),
            (2, "apiGroups", Texts),
            (3, "resources", Texts),
            (4, "resourceNames", Texts),
            (5, "nonResourceURLs", Texts),
        ],
    ),
    (
        "RoleBinding",
        &[
            (1, "metadata", One("ObjectMeta")),
            (2, "subjects", Many("Subject")),
            (3, "roleRef", One("RoleRef")),
        ],
    ),
    (
        "ClusterRoleBinding",
        &[
            (1, "metadata", One("ObjectMeta")),
            (2, "subjects", Many("Subject")),
            (3, "roleRef", One("RoleRef")),
        ],
    ),
    (
        "Subject",
        &[(1, "kind", Text), (2, "apiGroup", Text), (3, "name", Text), (4, "namespace", Text)],
    ),
    ("RoleRef", &[(1, "apiGroup", Text), (2, "kind", Text), (3, "name", Text)]),
    (
        "SelfSubjectAccessReview",
        &[
            (1, "metadata", One("ObjectMeta")),
            (2, "spec", One("SelfSubjectAccessReviewSpec")),
            (3, "status", Ignored),
        ],
    ),
    (
        "SelfSubjectAccessReviewSpec",
        &[
            (1, "resourceAttributes", One("ResourceAttributes")),
            (2, "nonResourceAttributes", One("NonResourceAttributes")),
        ],
    ),
    (
        "ResourceAttributes",
        &[
            (1, "namespace", Text),
            (2, "verb", Text),
            (3, "group", Text),
            (4, "version", Text),
            (5, "resource", Text),
            (6, "subresource", Text),
            (7, "name", Text),
        ],
    ),
    ("NonResourceAttributes", &[(1, "path", Text), (2, "verb", Text)]),
    (
        "SelfSubjectRulesReview",
        &[
            (1, "metadata", One("ObjectMeta")),
            (2, "spec", One("SelfSubjectRulesReviewSpec")),
            (3, "status", Ignored),
        ],
    ),
    ("SelfSubjectRulesReviewSpec", &[(1, "namespace", Text)]),
];
