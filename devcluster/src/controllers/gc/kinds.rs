//! Which kinds of object the API serves, built-in ones and those that definitions add at run time.

use std::collections::BTreeMap;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Client;
use kube::core::discovery::{ApiResource, Scope, verbs};
use kube::discovery::Discovery;
use parking_lot::RwLock;

use super::graph::KindName;

/// Kinds that are many, short-lived and never own anything (as in kube-controller-manager).
const IGNORED: [&str; 1] = ["events"];

#[derive(Clone, Debug, PartialEq)]
pub struct Served {
    pub resource: ApiResource,
    pub namespaced: bool,
}

impl Served {
    pub fn name(&self) -> KindName {
        KindName { group: self.resource.group.clone(), plural: self.resource.plural.clone() }
    }
}

#[derive(Default)]
pub struct Kinds {
    served: RwLock<BTreeMap<KindName, Served>>,
}

impl Kinds {
    pub fn all(&self) -> Vec<Served> {
        self.served.read().values().cloned().collect()
    }

    pub fn get(&self, name: &KindName) -> Option<Served> {
        self.served.read().get(name).cloned()
    }

    /// The kind an owner reference names.
    pub fn find(&self, api_version: &str, kind: &str) -> Option<Served> {
        let group = api_version.rsplit_once('/').map_or("", |(group, _)| group);
        let served = self.served.read();
        served.values().find(|it| it.resource.group == group && it.resource.kind == kind).cloned()
    }

    /// Adds a kind; whether it was not there in this form.
    pub fn add(&self, served: Served) -> bool {
        self.served.write().insert(served.name(), served.clone()).is_none_or(|held| held != served)
    }

    pub fn remove(&self, name: &KindName) -> Option<Served> {
        self.served.write().remove(name)
    }
}

/// Everything the API serves now that can be listed, watched and deleted.
pub async fn discover(client: &Client) -> Result<Vec<Served>, kube::Error> {
    let discovery = Discovery::new(client.clone()).run().await?;
    let mut found = Vec::new();
    for group in discovery.groups() {
        for (resource, capabilities) in group.recommended_resources() {
            let all = [verbs::LIST, verbs::WATCH, verbs::DELETE];
            let usable = all.iter().all(|verb| capabilities.supports_operation(verb));
            if usable && !IGNORED.contains(&resource.plural.as_str()) {
                found
                    .push(Served { resource, namespaced: capabilities.scope == Scope::Namespaced });
            }
        }
    }
    Ok(found)
}

/// The kind a definition adds, once the API serves it.
pub fn defined(definition: &CustomResourceDefinition) -> Option<Served> {
    let conditions = definition
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_deref())
        .unwrap_or_default();
    let established = conditions.iter().any(|it| it.type_ == "Established" && it.status == "True");
    let spec = &definition.spec;
    let mut versions = spec.versions.iter().filter(|version| version.served);
    let version = versions.clone().find(|version| version.storage).or_else(|| versions.next())?;
    established.then(|| Served {
        resource: ApiResource {
            group: spec.group.clone(),
            version: version.name.clone(),
            api_version: format!("{}/{}", spec.group, version.name),
            kind: spec.names.kind.clone(),
            plural: spec.names.plural.clone(),
        },
        namespaced: spec.scope == "Namespaced",
    })
}

pub fn name_of(definition: &CustomResourceDefinition) -> KindName {
    KindName { group: definition.spec.group.clone(), plural: definition.spec.names.plural.clone() }
}
