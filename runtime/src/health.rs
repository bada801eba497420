//! Is the service ready to be used? Each component says so for itself.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

type Reports<T> = Arc<Mutex<BTreeMap<&'static str, T>>>;

/// Reports by component; ready when every component that reported is well. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Health {
    components: Reports<Result<(), String>>,
    warnings: Reports<String>,
}

impl Health {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn set(&self, component: &'static str, state: Result<(), String>) {
        lock(&self.components).insert(component, state);
    }

    /// Something that people should look at, while the service stays ready. `None` takes it back.
    pub fn warn(&self, component: &'static str, warning: Option<String>) {
        match warning {
            Some(warning) => lock(&self.warnings).insert(component, warning),
            None => lock(&self.warnings).remove(component),
        };
    }

    pub fn warnings(&self) -> Vec<(&'static str, String)> {
        lock(&self.warnings).iter().map(|(name, warning)| (*name, warning.clone())).collect()
    }

    /// The components that are not well, with the reason.
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let bad = |(name, state): (&&'static str, &Result<(), String>)| {
            state.as_ref().err().map(|reason| (*name, reason.clone()))
        };
        lock(&self.components).iter().filter_map(bad).collect()
    }
}

fn lock<T>(reports: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every update is one insert, so a poisoned map is still whole.
    reports.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warning_is_no_problem() {
        let health = Health::new();
        health.warn("certificates", Some("one expires soon".to_owned()));
        assert!(health.problems().is_empty());
        assert_eq!(health.warnings(), [("certificates", "one expires soon".to_owned())]);
        health.warn("certificates", None);
        assert!(health.warnings().is_empty());
    }
}
