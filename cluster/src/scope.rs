//! Which Dormouse looks after what, where a cluster has several.
//!
//! A scope is a label of a Project, and a workload is in the scope of the Project whose namespace it is in.
//! What is of another scope is for everybody of this one as if it did not exist. What is followed (`members`)
//! decides what is looked at. Watches of two kinds do not keep step, so whoever writes asks the API server
//! first ([`Scope::holds`]): then a workload that is seen before its Project waits.

mod members;
mod projects;

use std::{borrow::Cow, fmt, str::FromStr};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Client, Resource, api::ListParams, core::PartialObjectMeta, core::Request};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Deserialize;

pub(crate) use self::projects::Flip;
pub use self::{members::members, projects::Projects};
use crate::{labels::SCOPE, resources::Project};

/// The default one, or one with a name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct Scope(Option<String>);

/// The name of the default scope, which is that of Projects without the label.
const DEFAULT: &str = "default";
/// Of a label's value.
const NAME_MAX: usize = 63;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no scope: at most 63 lower-case letters, digits and hyphens, beginning and ending with a letter or digit"
)]
pub struct InvalidScope(String);

impl FromStr for Scope {
    type Err = InvalidScope;

    /// Names are part of a Lease's name as well, so they are narrower than values of labels.
    fn from_str(text: &str) -> Result<Self, InvalidScope> {
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let bytes = text.as_bytes();
        let well = bytes.len() <= NAME_MAX
            && bytes.first().is_some_and(|b| inner(*b))
            && bytes.last().is_some_and(|b| inner(*b))
            && bytes.iter().all(|b| inner(*b) || *b == b'-');
        match well {
            true => Ok(Self((text != DEFAULT).then(|| text.to_owned()))),
            false => Err(InvalidScope(text.to_owned())),
        }
    }
}

impl TryFrom<String> for Scope {
    type Error = InvalidScope;

    fn try_from(text: String) -> Result<Self, InvalidScope> {
        text.parse()
    }
}

impl JsonSchema for Scope {
    fn schema_name() -> Cow<'static, str> {
        "Scope".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        String::json_schema(generator)
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name().unwrap_or(DEFAULT))
    }
}

impl Scope {
    /// `None` for the default one.
    pub fn name(&self) -> Option<&str> {
        self.0.as_deref()
    }

    /// Whether a Project is of this scope. A label whose value is no scope's name is of nobody's.
    pub fn has(&self, project: &ObjectMeta) -> bool {
        let label = project.labels.as_ref().and_then(|labels| labels.get(SCOPE));
        match label.map(String::as_str) {
            None | Some("" | DEFAULT) => self.0.is_none(),
            Some(name) => self.name() == Some(name),
        }
    }

    /// Whether what is in the namespace is of this scope at this moment, by what the API server says.
    /// One without a Project is of the default scope.
    ///
    /// # Errors
    /// Nothing is known then, and nothing may be done.
    pub async fn holds(&self, client: &Client, namespace: &str) -> kube::Result<bool> {
        let project = project(client, namespace).await?;
        Ok(self.has(&project.unwrap_or_default()))
    }
}

/// The newest metadata of a Project, whatever else of it can be read. By a list, to which everybody who
/// follows Projects has a right.
///
/// # Errors
/// When the API server does not say.
pub async fn project(client: &Client, name: &str) -> kube::Result<Option<ObjectMeta>> {
    let params = ListParams::default().fields(&format!("metadata.name={name}"));
    let request = Request::new(Project::url_path(&(), None))
        .list_metadata(&params)
        .map_err(kube::Error::BuildRequest)?;
    let list: kube::core::ObjectList<PartialObjectMeta<Project>> = client.request(request).await?;
    let found = list.items.into_iter().find(|it| it.metadata.name.as_deref() == Some(name));
    Ok(found.map(|found| found.metadata))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labelled(value: Option<&str>) -> ObjectMeta {
        let labels = value.map(|value| [(SCOPE.to_owned(), value.to_owned())].into());
        ObjectMeta { labels, ..ObjectMeta::default() }
    }

    #[test]
    fn a_project_is_of_one_scope_at_the_most() {
        let default = Scope::default();
        let dev: Scope = "dev-host".parse().unwrap();
        for value in [None, Some(""), Some("default")] {
            assert!(default.has(&labelled(value)) && !dev.has(&labelled(value)), "{value:?}");
        }
        assert!(dev.has(&labelled(Some("dev-host"))) && !default.has(&labelled(Some("dev-host"))));
        for value in ["dev", "Dev-Host", "Default", "a_b", "dev-host."] {
            let value = labelled(Some(value));
            assert!(!dev.has(&value) && !default.has(&value), "{value:?}");
        }
    }

    #[test]
    fn names_are_labels_that_a_lease_may_carry() {
        assert_eq!("default".parse(), Ok(Scope::default()));
        for name in ["a", "dev-host", "9", &"a".repeat(63)] {
            assert_eq!(name.parse::<Scope>().unwrap().to_string(), name);
        }
        for bad in ["", "-a", "a-", "A", "a.b", "a_b", "a b", "ä", &"a".repeat(64)] {
            assert!(bad.parse::<Scope>().unwrap_err().to_string().contains("is no scope"), "{bad}");
        }
    }
}
