//! Watches Secrets that hold server certificates, as cert-manager leaves them.

use std::sync::Arc;

use domain::certificate::{Pair, Pairs};
use futures::StreamExt;
use k8s_openapi::api::core::v1::Secret;
use kube::Client;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    routes::mirror::Mirror,
    watch::{Source, Watches, follow as changes_of},
};

/// Which Secrets are looked at. Others are not even read: no right to them is needed.
#[derive(Debug, Clone)]
pub struct Options {
    pub namespace: String,
    /// A label selector, such as `app=dormouse`; all when unset.
    pub labels: Option<String>,
}

/// The type of Secrets with a certificate and a key.
const TLS: &str = "kubernetes.io/tls";
/// Most changes that are taken in at once.
const BATCH: usize = 128;

/// Starts watching. The receiver holds nothing and is not synced until all have been listed once;
/// after that it always holds the last whole picture.
pub fn watch(
    client: Client,
    options: Options,
    watches: Watches,
    shutdown: CancellationToken,
) -> watch::Receiver<Arc<Pairs>> {
    let (pairs, receiver) = watch::channel(Arc::default());
    tokio::spawn(async move {
        tokio::select! {
            () = follow(client, options, &watches, pairs) => {}
            () = shutdown.cancelled() => {}
        }
    });
    receiver
}

async fn follow(
    client: Client,
    options: Options,
    watches: &Watches,
    pairs: watch::Sender<Arc<Pairs>>,
) {
    let mut source = Source::within(client, &options.namespace).fields(&format!("type={TLS}"));
    if let Some(labels) = &options.labels {
        source = source.labels(labels);
    }
    let mut batches = std::pin::pin!(changes_of(source, watches).ready_chunks(BATCH));
    let mut secrets = Mirror::<Secret>::default();
    while let Some(batch) = batches.next().await {
        for news in batch {
            secrets.learn(news);
        }
        if !secrets.is_synced() {
            continue;
        }
        let next = Arc::new(all(&secrets));
        pairs.send_if_modified(|pairs| {
            let changed = **pairs != *next;
            *pairs = next;
            changed
        });
    }
}

fn all(secrets: &Mirror<Secret>) -> Pairs {
    let mut pairs: Vec<_> = secrets.iter().filter_map(pair).collect();
    pairs.sort_by(|a, b| a.name.cmp(&b.name));
    Pairs { pairs, synced: true }
}

/// `None` for one that holds no certificate yet: cert-manager fills it when it has one.
fn pair(secret: &Secret) -> Option<Pair> {
    if secret.type_.as_deref() != Some(TLS) {
        return None;
    }
    let data = secret.data.as_ref()?;
    let part = |name: &str| data.get(name).map(|part| part.0.clone()).filter(|p| !p.is_empty());
    let meta = &secret.metadata;
    let name = format!("{}/{}", meta.namespace.as_deref()?, meta.name.as_deref()?);
    Some(Pair { name, chain: part("tls.crt")?, key: part("tls.key")? })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;
    use kube::runtime::watcher::Event;

    use super::*;

    fn secret(name: &str, kind: &str, chain: &str) -> Secret {
        let data = [("tls.crt", chain), ("tls.key", "key")];
        let mut secret = Secret {
            type_: Some(kind.to_owned()),
            data: Some(data.map(|(name, text)| (name.to_owned(), ByteString(text.into()))).into()),
            ..Secret::default()
        };
        secret.metadata.namespace = Some("dormouse".to_owned());
        secret.metadata.name = Some(name.to_owned());
        secret
    }

    #[test]
    fn secrets_of_the_type_that_hold_something() {
        let mut secrets = Mirror::default();
        for event in [
            Event::Init,
            Event::InitApply(secret("b", TLS, "chain b")),
            Event::InitApply(secret("a", TLS, "chain a")),
            Event::InitApply(secret("waiting", TLS, "")),
            Event::InitApply(secret("next-key", "Opaque", "chain")),
            Event::InitDone,
        ] {
            secrets.apply(event);
        }
        let listed = all(&secrets);
        let names: Vec<_> = listed.pairs.iter().map(|pair| pair.name.as_str()).collect();
        assert_eq!(names, ["dormouse/a", "dormouse/b"]);
        assert_eq!(listed.pairs[0].chain, b"chain a");
        secrets.apply(Event::Delete(secret("a", TLS, "")));
        assert_eq!(all(&secrets).pairs.len(), 1);
    }
}
