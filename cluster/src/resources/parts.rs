//! What the kinds have in common.

use std::{collections::BTreeMap, time::Duration};

use domain::workload::Protocol;
use jiff::SignedDuration;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::KubeSchema;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize};

/// A length of time such as `90s`, `30m` or `1h30m`, or `never`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct DurationText(
    #[schemars(regex(pattern = r"^(([0-9]+h)?([0-9]+m)?([0-9]+s)?|never)$"), length(min = 2))]
    pub  String,
);

impl DurationText {
    /// `None` for `never`, and for text that the schema would have refused: doubt keeps a workload.
    pub fn duration(&self) -> Option<Duration> {
        let span: SignedDuration = self.0.parse().ok()?;
        Duration::try_from(span).ok()
    }
}

impl From<&str> for DurationText {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

/// When the workload may sleep, and how it wakes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.wakeHold) || self.wakeHold != 'never'").message("a request cannot be held for ever: set wakeHold to a length of time such as 60s"))]
pub struct IdleSpec {
    /// Sleep after this long without a person's doing. Unset: the platform's default; `never` keeps
    /// the workload running.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<DurationText>,
    /// How long an API call or an SSH connection is held while the workload wakes.
    #[serde(default = "default_wake_hold")]
    pub wake_hold: DurationText,
}

impl Default for IdleSpec {
    fn default() -> Self {
        Self { after: None, wake_hold: default_wake_hold() }
    }
}

fn default_wake_hold() -> DurationText {
    "60s".into()
}

/// Who besides the owner may use the workload.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Sharing {
    /// People by name.
    pub users: Vec<String>,
    /// Groups as the identity provider names them.
    pub groups: Vec<String>,
    /// Every member of the project.
    pub project: bool,
    /// Everybody who can sign in.
    pub everyone: bool,
}

/// Of `env`, on the list itself: what did not change is not judged again, so that an older object can
/// still be stopped.
pub(super) const ENV_ONCE: &str = "self.all(a, self.exists_one(b, a.name == b.name))";
pub(super) const ENV_ONCE_SAYS: &str = "a variable is there twice: give each name once";
pub(super) const ENV_RESERVED: &str =
    "self.all(a, a.name != 'POD_IP' && !a.name.startsWith('DORMOUSE_'))";
pub(super) const ENV_RESERVED_SAYS: &str =
    "POD_IP and names that begin with DORMOUSE_ are reserved: choose another name";
/// Of `secrets`.
pub(super) const SECRETS_APART: &str = "self.all(a, !has(a.mountPath) || self.exists_one(b, has(b.mountPath) && a.mountPath == b.mountPath))";
pub(super) const SECRETS_APART_SAYS: &str =
    "two secrets have the same mountPath: give each a folder of its own";
/// Of every path at which something is mounted.
pub(super) const PATH_PLAIN: &str =
    "self.startsWith('/') && !self.matches('//|/$|/[.][.]?(/|$)|:')";
pub(super) const PATH_PLAIN_SAYS: &str =
    "must be an absolute path without //, /./, /../, a colon, or / at its end";
pub(super) const PATH_OURS: &str = "!(self + '/').startsWith('/run/dormouse/') && !(self + '/').startsWith('/run/dormouse-keys/') && self != '/run'";
pub(super) const PATH_OURS_SAYS: &str =
    "/run, /run/dormouse and /run/dormouse-keys are reserved: choose another folder";

/// One environment variable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EnvVar {
    #[schemars(regex(pattern = r"^[A-Za-z_][A-Za-z0-9_]*$"), length(max = 256))]
    pub name: String,
    /// May refer to `$(POD_IP)` and to variables defined before it.
    pub value: String,
}

/// A Secret of the project's namespace, given to the workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.mountPath) != (has(self.asEnv) && self.asEnv)").message("give each secret either a mountPath or asEnv: true"))]
pub struct SecretMount {
    /// Name of the Secret.
    pub name: String,
    /// Each key becomes a file in this folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^/.+"), length(max = 512))]
    #[x_kube(
        validation = Rule::new(PATH_PLAIN).message(PATH_PLAIN_SAYS),
        validation = Rule::new(PATH_OURS).message(PATH_OURS_SAYS)
    )]
    pub mount_path: Option<String>,
    /// Each key becomes an environment variable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub as_env: Option<bool>,
}

/// Requests and limits by resource name, as Kubernetes has them; `nvidia.com/gpu` goes into limits.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Resources {
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "quantities")]
    #[schemars(schema_with = "quantities_schema")]
    pub requests: BTreeMap<String, Quantity>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "quantities")]
    #[schemars(schema_with = "quantities_schema")]
    pub limits: BTreeMap<String, Quantity>,
}

/// A quantity as people write it and Kubernetes takes it: `500m`, `1Gi`, or a bare number.
#[derive(Deserialize)]
#[serde(untagged)]
enum Amount {
    Text(String),
    Number(i64),
}

impl From<Amount> for Quantity {
    fn from(amount: Amount) -> Self {
        match amount {
            Amount::Text(text) => Self(text),
            Amount::Number(number) => Self(number.to_string()),
        }
    }
}

/// Of one object that cannot be read, a watch can make nothing: neither can it of all the others.
pub(super) fn quantities<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<BTreeMap<String, Quantity>, D::Error> {
    let amounts = BTreeMap::<String, Amount>::deserialize(from)?;
    Ok(amounts.into_iter().map(|(name, amount)| (name, amount.into())).collect())
}

pub(super) fn quantities_schema(from: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "object", "additionalProperties": quantity_schema(from)})
}

fn size<'de, D: Deserializer<'de>>(from: D) -> Result<Quantity, D::Error> {
    Ok(Option::<Amount>::deserialize(from)?.map_or_else(default_size, Quantity::from))
}

fn quantity_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "x-kubernetes-int-or-string": true,
        "pattern": r"^([0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]+)?$",
    })
}

/// What the workload speaks, so far as telling a person from background chatter depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ProtocolName {
    Http,
    Jupyter,
    Streamlit,
    VsCode,
}

impl From<ProtocolName> for Protocol {
    fn from(name: ProtocolName) -> Self {
        match name {
            ProtocolName::Http => Self::Http,
            ProtocolName::Jupyter => Self::Jupyter,
            ProtocolName::Streamlit => Self::Streamlit,
            ProtocolName::VsCode => Self::VsCode,
        }
    }
}

/// The volume that outlives every sleep.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Storage {
    #[serde(default = "default_size", deserialize_with = "size")]
    #[schemars(schema_with = "quantity_schema")]
    pub size: Quantity,
    /// The cluster's default class when unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_class_name: Option<String>,
    /// Where the volume is mounted; also the home and working folder.
    #[serde(default = "default_mount_path")]
    #[schemars(regex(pattern = r"^/.+"), length(max = 512))]
    #[x_kube(
        validation = Rule::new(PATH_PLAIN).message(PATH_PLAIN_SAYS),
        validation = Rule::new(PATH_OURS).message(PATH_OURS_SAYS)
    )]
    pub mount_path: String,
    /// What becomes of the volume when the workspace is deleted.
    #[serde(default)]
    pub on_delete: OnDelete,
}

impl Default for Storage {
    fn default() -> Self {
        Self {
            size: default_size(),
            storage_class_name: None,
            mount_path: default_mount_path(),
            on_delete: OnDelete::default(),
        }
    }
}

fn default_size() -> Quantity {
    Quantity("10Gi".to_owned())
}

fn default_mount_path() -> String {
    "/home/work".to_owned()
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OnDelete {
    #[default]
    Delete,
    Retain,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_may_be_bare_numbers() {
        let resources: Resources =
            serde_json::from_str(r#"{"limits": {"cpu": 1, "memory": "1Gi"}}"#).unwrap();
        assert_eq!(resources.limits.get("cpu").unwrap().0, "1");
        assert_eq!(resources.limits.get("memory").unwrap().0, "1Gi");
        let size = |json: &str| serde_json::from_str::<Storage>(json).unwrap().size.0;
        assert_eq!(size(r#"{"size": 5}"#), "5");
        assert_eq!(size(r#"{"size": null}"#), "10Gi");
        assert_eq!(size("{}"), "10Gi");
    }

    #[test]
    fn lengths_of_time_read_as_written() {
        let seconds = |text: &str| DurationText::from(text).duration().map(|d| d.as_secs());
        assert_eq!(seconds("90s"), Some(90));
        assert_eq!(seconds("30m"), Some(1800));
        assert_eq!(seconds("1h30m"), Some(5400));
        assert_eq!(seconds("never"), None);
        assert_eq!(seconds("soon"), None);
        assert_eq!(seconds("-5s"), None);
    }
}
