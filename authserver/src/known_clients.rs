//! The clients in memory, so that a request from one of them does not ask the database for it.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use arc_swap::ArcSwap;

use crate::{
    client::Client,
    store::{Store, StoreError},
};

/// Clients as they were about a second ago. What is withdrawn with a client, its grants, is asked
/// of the database in any case.
pub(crate) struct KnownClients {
    store: Store,
    known: ArcSwap<HashMap<String, Arc<Client>>>,
    version: AtomicI64,
}

impl KnownClients {
    pub async fn read(store: Store) -> Result<Self, StoreError> {
        // Before the clients: a change in between is seen later.
        let version = AtomicI64::new(store.client_version().await?);
        let known = ArcSwap::from_pointee(by_id(store.clients().await?));
        Ok(Self { store, known, version })
    }

    /// Takes over what another replica or an operator has changed.
    pub async fn check(&self) -> Result<(), StoreError> {
        let version = self.store.client_version().await?;
        if self.version.load(Ordering::Acquire) != version {
            self.known.store(Arc::new(by_id(self.store.clients().await?)));
            self.version.store(version, Ordering::Release);
        }
        Ok(())
    }

    pub fn any(&self, is: impl Fn(&Client) -> bool) -> bool {
        self.known.load().values().any(|client| is(client))
    }

    /// A client that is not known yet is asked for.
    pub async fn get(&self, id: &str) -> Result<Option<Arc<Client>>, StoreError> {
        if let Some(client) = self.known.load().get(id) {
            return Ok(Some(client.clone()));
        }
        self.fresh(id).await
    }

    /// As it is now.
    pub async fn fresh(&self, id: &str) -> Result<Option<Arc<Client>>, StoreError> {
        Ok(self.store.client(id).await?.map(Arc::new))
    }
}

fn by_id(clients: Vec<Client>) -> HashMap<String, Arc<Client>> {
    clients.into_iter().map(|client| (client.id.clone(), Arc::new(client))).collect()
}
