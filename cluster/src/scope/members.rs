//! Workloads of one scope, as if there were no others.

use futures::{Stream, StreamExt, stream::select};
use kube::{
    Client, Resource,
    runtime::{reflector::Lookup, watcher::Event},
};
use serde::de::DeserializeOwned;

use super::{
    Projects, Scope,
    projects::{Flip, Meta},
};
use crate::{
    routes::mirror::{Changed, Mirror},
    watch::{Key, News, Source, Watches, follow},
};

/// Follows the objects of a kind that can be read and whose namespace is of the scope. One that leaves it is
/// told as deleted, one that comes into it as applied.
pub fn members<K>(
    client: Client,
    scope: Scope,
    watches: &Watches,
) -> impl Stream<Item = Event<K>> + Send + use<K>
where
    K: Resource<DynamicType = ()>
        + Lookup<DynamicType = ()>
        + DeserializeOwned
        + Clone
        + Send
        + 'static,
{
    let projects = follow(Projects::source(client.clone()), watches)
        .map(|news| Change::Project(Box::new(news)));
    let objects = follow(Source::<K>::all(client), watches).map(Change::Object);
    let mut members = Members::new(scope);
    select(projects.boxed(), objects.boxed())
        .flat_map(move |change| futures::stream::iter(members.learn(change)))
}

enum Change<K> {
    Project(Box<News<Meta>>),
    Object(News<K>),
}

struct Members<K> {
    projects: Projects,
    /// Of all scopes, because a Project's may change.
    objects: Mirror<K>,
    /// Between the beginning of a list and its end, what cannot be read is left out of it.
    listing: bool,
}

impl<K> Members<K>
where
    K: Resource<DynamicType = ()> + Lookup<DynamicType = ()> + Clone,
{
    fn new(scope: Scope) -> Self {
        Self { projects: Projects::new(scope), objects: Mirror::default(), listing: false }
    }

    fn learn(&mut self, change: Change<K>) -> Vec<Event<K>> {
        match change {
            Change::Project(news) => match self.projects.learn(*news) {
                Flip::None => Vec::new(),
                Flip::All => self.whole(),
                Flip::Namespace(namespace) => self.flip(&namespace),
            },
            Change::Object(news) => {
                let news = match news {
                    News::Event(event) => {
                        match &event {
                            Event::Init => self.listing = true,
                            Event::InitDone => self.listing = false,
                            _ => {}
                        }
                        News::Event(event)
                    }
                    News::Unreadable(_) if self.listing => return Vec::new(),
                    News::Unreadable(key) | News::Gone(key) => News::Gone(key),
                };
                match self.objects.learn(news) {
                    Changed::Nothing => Vec::new(),
                    Changed::All => self.whole(),
                    Changed::One { key, before, gone } => self.one(&key, before, gone),
                }
            }
        }
    }

    fn is_synced(&self) -> bool {
        self.projects.is_synced() && self.objects.is_synced()
    }

    /// Everything anew; nothing before both kinds have been listed.
    fn whole(&self) -> Vec<Event<K>> {
        if !self.is_synced() {
            return Vec::new();
        }
        let members = self.objects.entries().filter(|(key, _)| self.projects.has(&key.0));
        let members = members.map(|(_, object)| Event::InitApply(object.clone()));
        std::iter::once(Event::Init).chain(members).chain([Event::InitDone]).collect()
    }

    fn flip(&self, namespace: &str) -> Vec<Event<K>> {
        if !self.is_synced() {
            return Vec::new();
        }
        let event = if self.projects.has(namespace) { Event::Apply } else { Event::Delete };
        let objects = self.objects.keys_in(namespace).filter_map(|key| self.objects.get(key));
        objects.cloned().map(event).collect()
    }

    fn one(&self, key: &Key, before: Option<K>, gone: bool) -> Vec<Event<K>> {
        if !self.is_synced() || !self.projects.has(&key.0) {
            return Vec::new();
        }
        let event = match gone {
            true => before.map(Event::Delete),
            false => self.objects.get(key).cloned().map(Event::Apply),
        };
        event.into_iter().collect()
    }
}

#[cfg(test)]
mod tests;
