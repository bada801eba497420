//! A map of which snapshots are cheap: it is many small maps, and a change copies one of them.

use std::{
    borrow::Borrow,
    collections::{HashMap, hash_map::RandomState},
    hash::{BuildHasher, Hash},
    sync::Arc,
};

/// With 10,000 entries a change copies about forty.
const SHARDS: usize = 256;

#[derive(Debug, Clone)]
pub struct Shards<K, V> {
    /// Always as many as [`SHARDS`].
    maps: Vec<Arc<HashMap<K, V>>>,
    hasher: RandomState,
    len: usize,
}

impl<K, V> Default for Shards<K, V> {
    fn default() -> Self {
        let empty = Arc::new(HashMap::new());
        Self { maps: vec![empty; SHARDS], hasher: RandomState::new(), len: 0 }
    }
}

impl<K: Eq + Hash + Clone, V: Clone> Shards<K, V> {
    fn place<Q: Hash + ?Sized>(&self, key: &Q) -> usize {
        // Which shard and where in it must not depend on the same bits: the maps have hashers of
        // their own.
        self.hasher.hash_one(key) as usize % SHARDS
    }

    pub fn get<Q>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        self.maps.get(self.place(key))?.get(key)
    }

    pub fn insert(&mut self, key: K, value: V) {
        let place = self.place(&key);
        if let Some(map) = self.maps.get_mut(place)
            && Arc::make_mut(map).insert(key, value).is_none()
        {
            self.len += 1;
        }
    }

    pub fn remove<Q>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        let place = self.place(key);
        let map = self.maps.get_mut(place).filter(|map| map.contains_key(key))?;
        self.len -= 1;
        Arc::make_mut(map).remove(key)
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.maps.iter().flat_map(|map| map.values())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_map_and_snapshots_stay_as_they_were(
            changes in prop::collection::vec((0..40u32, prop::option::of(any::<u8>())), 0..100),
        ) {
            let (mut shards, mut model) = (Shards::default(), HashMap::new());
            let mut snapshots = Vec::new();
            for (key, value) in changes {
                match value {
                    Some(value) => { shards.insert(key, value); model.insert(key, value); }
                    None => prop_assert_eq!(shards.remove(&key), model.remove(&key)),
                }
                snapshots.push((shards.clone(), model.clone()));
            }
            for (shards, model) in snapshots {
                prop_assert_eq!(shards.len(), model.len());
                prop_assert_eq!(shards.values().count(), model.len());
                for key in 0..40 {
                    prop_assert_eq!(shards.get(&key), model.get(&key));
                }
            }
        }
    }
}
