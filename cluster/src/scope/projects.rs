//! The scope of each namespace, kept by a watch of the Projects.

use kube::{Client, core::PartialObjectMeta};

use super::Scope;
use crate::{
    resources::Project,
    routes::mirror::{Changed, Mirror},
    watch::{News, Source},
};

/// Only the metadata of Projects: one that cannot be read otherwise still has a scope.
pub type Meta = PartialObjectMeta<Project>;

#[derive(Debug)]
pub struct Projects {
    scope: Scope,
    known: Mirror<Meta>,
}

/// Whose membership a change concerns.
#[derive(Debug, PartialEq, Eq)]
pub enum Flip {
    None,
    All,
    Namespace(String),
}

impl Projects {
    pub fn new(scope: Scope) -> Self {
        Self { scope, known: Mirror::default() }
    }

    pub fn source(client: Client) -> Source<Meta> {
        Source::metadata(client)
    }

    pub fn is_synced(&self) -> bool {
        self.known.is_synced()
    }

    /// Whether what is in the namespace is of the scope. Meaningless before everything has been listed.
    pub fn has(&self, namespace: &str) -> bool {
        let project = self.known.get(&(String::new(), namespace.to_owned()));
        self.scope.has(&project.map(|project| project.metadata.clone()).unwrap_or_default())
    }

    pub fn learn(&mut self, news: News<Meta>) -> Flip {
        match self.known.learn(news) {
            Changed::Nothing => Flip::None,
            Changed::All => Flip::All,
            Changed::One { key: (_, namespace), before, .. } => {
                let before = before.map(|project| project.metadata).unwrap_or_default();
                match self.scope.has(&before) == self.has(&namespace) {
                    true => Flip::None,
                    false => Flip::Namespace(namespace),
                }
            }
        }
    }
}
