//! Is the service ready to be used? Each component says so for itself.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Reports by component; ready when every component that reported is well. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Health {
    components: Arc<Mutex<BTreeMap<&'static str, Result<(), String>>>>,
}

impl Health {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn set(&self, component: &'static str, state: Result<(), String>) {
        self.lock().insert(component, state);
    }

    /// The components that are not well, with the reason.
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let bad = |(name, state): (&&'static str, &Result<(), String>)| {
            state.as_ref().err().map(|reason| (*name, reason.clone()))
        };
        self.lock().iter().filter_map(bad).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, Result<(), String>>> {
        // Every update is one insert, so a poisoned map is still whole.
        self.components.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
