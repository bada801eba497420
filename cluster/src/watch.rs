//! Lists and watches one kind of object, for ever: what every part of ours that follows the cluster
//! stands on.
//!
//! A restarted API server answers 503, 403 and 429 for some seconds, and then 410 to each watch that
//! goes on where it was. So an expired version is listed again at once, all else after pauses that
//! stay short, and no watch waits for another's pause (`pauses`). A watch that ends is normal. One that says
//! nothing for long is made anew from a list: it may have begun at a version that is yet to come, as
//! after a restored backup. Objects are read one by one (`item`), and what is seen is told (`sight`).

mod item;
mod pauses;
mod sight;

use std::{collections::VecDeque, marker::PhantomData, time::Duration};

use futures::{Stream, StreamExt, stream::BoxStream};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{
    Client, Resource,
    api::{ListParams, ObjectList, WatchEvent, WatchParams},
    core::{NamespaceResourceScope, PartialObjectMeta, Request},
    runtime::{
        reflector::{Lookup, ObjectRef, Store},
        watcher::Event,
    },
};
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use self::{
    item::Item,
    pauses::{Cause, Pauses},
    sight::Sight,
};
pub use self::{
    item::Unreadable,
    sight::{One, Report, Seen, Watches},
};

/// Namespace (empty for kinds without) and name.
pub type Key = (String, String);

/// Objects of one page of a list.
const PAGE: u32 = 500;
/// For one page, and for the beginning of a watch.
const ANSWER: Duration = Duration::from_secs(30);
/// The API server ends a watch after this many seconds, and it goes on where it was.
const WATCH_SECONDS: u32 = 290;
/// Bookmarks come about every minute, so two are missing.
const SILENT: Duration = Duration::from_secs(125);
/// A watch works when it has lived this long, or something came.
const SETTLED: Duration = Duration::from_secs(1);
/// A watch that cannot be resumed this often in a row is listed again.
const RESUMES: u32 = 5;

/// Which objects.
pub struct Source<K> {
    client: Client,
    url: String,
    labels: Option<String>,
    fields: Option<String>,
    metadata: bool,
    of: PhantomData<fn() -> K>,
}

impl<K: Resource<DynamicType = ()>> Source<K> {
    /// Of the whole cluster.
    pub fn all(client: Client) -> Self {
        let url = K::url_path(&(), None);
        Self { client, url, labels: None, fields: None, metadata: false, of: PhantomData }
    }

    pub fn within(client: Client, namespace: &str) -> Self
    where
        K: Resource<Scope = NamespaceResourceScope>,
    {
        Self { url: K::url_path(&(), Some(namespace)), ..Self::all(client) }
    }

    #[must_use]
    pub fn labels(self, selector: &str) -> Self {
        Self { labels: Some(selector.to_owned()), ..self }
    }

    #[must_use]
    pub fn fields(self, selector: &str) -> Self {
        Self { fields: Some(selector.to_owned()), ..self }
    }
}

impl<K: Resource<DynamicType = ()>> Source<PartialObjectMeta<K>> {
    /// Only what is in `metadata` is sent and kept.
    pub fn metadata(client: Client) -> Self {
        Self { metadata: true, ..Self::all(client) }
    }
}

/// What a watch tells.
#[derive(Debug)]
pub enum News<K> {
    Event(Event<K>),
    /// There, and cannot be read; between `Init` and `InitDone` it is part of the list.
    Unreadable(Key),
    /// It could not be read before it went.
    Gone(Key),
}

/// An object's key.
pub fn key(meta: &ObjectMeta) -> Key {
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

/// What a failure was, in one line that holds nothing of an object. The texts of errors that come of reading
/// an answer repeat what stood there.
pub fn told(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => {
            format!("{} {}: {}", status.code, status.reason, status.message)
        }
        kube::Error::SerdeError(error) => {
            format!("the answer cannot be read, at line {} column {}", error.line(), error.column())
        }
        kube::Error::FromUtf8(_) => "the answer is not UTF-8".to_owned(),
        other => other.to_string(),
    }
}

/// Lists, then watches, for ever. Pauses after failures are within.
pub fn follow<K>(
    source: Source<K>,
    watches: &Watches,
) -> impl Stream<Item = News<K>> + Send + use<K>
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Clone + Send + 'static,
{
    let (kind, api_version) = (K::kind(&()).into_owned(), K::api_version(&()).into_owned());
    let following = Following {
        source,
        sight: watches.open(kind, api_version),
        pauses: Pauses::default(),
        resumes: 0,
        state: State::List { next: None },
        pending: VecDeque::new(),
    };
    futures::stream::unfold(following, |mut following| async {
        loop {
            if let Some(news) = following.pending.pop_front() {
                return Some((news, following));
            }
            following.step().await;
        }
    })
}

/// What is done about an object that becomes unreadable, where a store holds the last that could be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unread {
    /// The last state stays, for those who only show it.
    KeepLast,
    /// The object is treated as if it were not there, by those who act on it.
    LeaveOut,
}

/// The events for a store that `store` reads.
pub fn events<K>(
    news: impl Stream<Item = News<K>> + Send,
    store: Store<K>,
    unread: Unread,
) -> impl Stream<Item = Event<K>> + Send
where
    K: Resource<DynamicType = ()> + Lookup<DynamicType = ()> + Clone + Send + Sync + 'static,
{
    let mut listing = false;
    news.filter_map(move |news| {
        let before = |(namespace, name): &Key| {
            let object = ObjectRef::<K>::new(name);
            let object = if namespace.is_empty() { object } else { object.within(namespace) };
            store.get(&object).map(|object| (*object).clone())
        };
        let event = match news {
            News::Event(event) => {
                match event {
                    Event::Init => listing = true,
                    Event::InitDone => listing = false,
                    _ => {}
                }
                Some(event)
            }
            News::Unreadable(key) => match (unread, listing) {
                (Unread::KeepLast, true) => before(&key).map(Event::InitApply),
                (Unread::LeaveOut, false) => before(&key).map(Event::Delete),
                _ => None,
            },
            News::Gone(key) => before(&key).map(Event::Delete),
        };
        std::future::ready(event)
    })
}

/// Every object that an event brings, also the deleted: for those who look up what it belongs to.
pub fn touched<K: Send>(news: impl Stream<Item = News<K>> + Send) -> impl Stream<Item = K> + Send {
    news.filter_map(|news| {
        std::future::ready(match news {
            News::Event(
                Event::Apply(object) | Event::InitApply(object) | Event::Delete(object),
            ) => Some(object),
            _ => None,
        })
    })
}

enum State<K> {
    List { next: Option<String> },
    Resume { version: String },
    Watching { version: String, lines: Lines<K>, settled: bool },
}

impl<K> Source<K>
where
    K: DeserializeOwned + Clone + Send + 'static,
{
    async fn page(&self, next: Option<String>) -> Result<ObjectList<Item<K>>, Failure> {
        let params = ListParams {
            label_selector: self.labels.clone(),
            field_selector: self.fields.clone(),
            limit: Some(PAGE),
            continue_token: next,
            ..ListParams::default()
        };
        let request = Request::new(&self.url);
        let request = match self.metadata {
            true => request.list_metadata(&params),
            false => request.list(&params),
        };
        let request = request.map_err(|error| Failure::of(&kube::Error::BuildRequest(error)))?;
        // As text: the client would log an answer that it cannot read, with all that is in it.
        let text = timeout(ANSWER, self.client.request_text(request)).await;
        let text = text.map_err(|_| Failure::late())?.map_err(|error| Failure::of(&error))?;
        serde_json::from_str(&text).map_err(|error| Failure::of(&kube::Error::SerdeError(error)))
    }

    async fn open(&self, version: &str) -> Result<Lines<K>, Failure> {
        let params = WatchParams {
            label_selector: self.labels.clone(),
            field_selector: self.fields.clone(),
            timeout: Some(WATCH_SECONDS),
            bookmarks: true,
            send_initial_events: false,
        };
        let request = Request::new(&self.url);
        let request = match self.metadata {
            true => request.watch_metadata(&params, version),
            false => request.watch(&params, version),
        };
        let request = request.map_err(|error| Failure::of(&kube::Error::BuildRequest(error)))?;
        let opening = self.client.request_events::<Item<K>>(request);
        let lines = timeout(ANSWER, opening).await.map_err(|_| Failure::late())?;
        Ok(lines.map_err(|error| Failure::of(&error))?.boxed())
    }
}

type Lines<K> = BoxStream<'static, kube::Result<WatchEvent<Item<K>>>>;

struct Following<K> {
    source: Source<K>,
    sight: Sight,
    pauses: Pauses,
    /// Resumptions that failed in a row.
    resumes: u32,
    state: State<K>,
    pending: VecDeque<News<K>>,
}

impl<K> Following<K>
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Clone + Send + 'static,
{
    /// One request, or one line of a watch.
    async fn step(&mut self) {
        let first = || State::List { next: None };
        // Whatever does not come to its end begins with a list.
        self.state = match std::mem::replace(&mut self.state, first()) {
            State::List { next } => self.list(next).await,
            State::Resume { version } => match self.source.open(&version).await {
                Ok(lines) => State::Watching { version, lines, settled: false },
                Err(failure) => self.resume_later(version, failure).await,
            },
            State::Watching { version, lines, settled } => self.read(version, lines, settled).await,
        };
    }

    async fn list(&mut self, next: Option<String>) -> State<K> {
        if next.is_none() {
            self.sight.begin_list();
            self.pending.push_back(News::Event(Event::Init));
        }
        let page = match self.source.page(next).await {
            Ok(page) => page,
            Err(failure) => {
                self.pause(failure).await;
                return State::List { next: None };
            }
        };
        for item in page.items {
            let news = self.news(item, Event::InitApply, false);
            self.pending.push_back(news);
        }
        if let Some(next) = page.metadata.continue_.filter(|next| !next.is_empty()) {
            return State::List { next: Some(next) };
        }
        self.pending.push_back(News::Event(Event::InitDone));
        self.sight.end_list();
        self.seen();
        self.resumes = 0;
        State::Resume { version: page.metadata.resource_version.unwrap_or_default() }
    }

    async fn read(&mut self, version: String, mut lines: Lines<K>, settled: bool) -> State<K> {
        let wait = if settled { SILENT } else { SETTLED };
        let line = match timeout(wait, lines.next()).await {
            Ok(line) => line,
            Err(_) if settled => {
                tracing::info!(kind = self.sight.kind(), "a watch is silent; listing again");
                return State::List { next: None };
            }
            Err(_) => {
                self.works();
                return State::Watching { version, lines, settled: true };
            }
        };
        let (item, deleted) = match line {
            Some(Ok(WatchEvent::Added(item) | WatchEvent::Modified(item))) => (item, false),
            Some(Ok(WatchEvent::Deleted(item))) => (item, true),
            Some(Ok(WatchEvent::Bookmark(bookmark))) => {
                self.works();
                let version = bookmark.metadata.resource_version;
                return State::Watching { version, lines, settled: true };
            }
            Some(Ok(WatchEvent::Error(status))) => {
                let failure = Failure::of(&kube::Error::Api(status));
                return self.resume_later(version, failure).await;
            }
            Some(Err(error)) => return self.resume_later(version, Failure::of(&error)).await,
            None if settled => return State::Resume { version },
            // It ended as soon as it began: no reason to list, and none to begin anew at once.
            None => {
                let pause = self.pauses.failed(Cause::Unreached, rand::random());
                tokio::time::sleep(pause).await;
                return State::Resume { version };
            }
        };
        let meta = match &item {
            Item::Read(object) => object.meta(),
            Item::Unreadable(unreadable) => &unreadable.meta,
        };
        let Some(version) = meta.resource_version.clone() else {
            let why = "an event has no version".to_owned();
            return self
                .resume_later(
                    version,
                    Failure { cause: Cause::Answered { retry_after: None }, why },
                )
                .await;
        };
        self.works();
        let event = if deleted { Event::Delete } else { Event::Apply };
        let news = self.news(item, event, deleted);
        self.pending.push_back(news);
        State::Watching { version, lines, settled: true }
    }

    /// `deleted` is for an object that cannot be read: `event` is then not asked.
    fn news(&mut self, item: Item<K>, event: fn(K) -> Event<K>, deleted: bool) -> News<K> {
        match item {
            Item::Read(object) => {
                self.sight.readable(&key(object.meta()));
                News::Event(event(*object))
            }
            Item::Unreadable(unreadable) => {
                let key = key(&unreadable.meta);
                let goes = unreadable.meta.deletion_timestamp.is_some();
                if goes || deleted {
                    self.sight.readable(&key);
                    return News::Gone(key);
                }
                self.sight.unreadable(&key, &unreadable);
                News::Unreadable(key)
            }
        }
    }

    /// After a watch that could not be begun, or broke.
    async fn resume_later(&mut self, version: String, failure: Failure) -> State<K> {
        let expired = failure.cause == Cause::Expired;
        self.resumes += 1;
        self.pause(failure).await;
        if expired || self.resumes >= RESUMES {
            self.resumes = 0;
            State::List { next: None }
        } else {
            State::Resume { version }
        }
    }

    async fn pause(&mut self, failure: Failure) {
        let new = self.sight.lost(&failure.why, Timestamp::now());
        let kind = self.sight.kind();
        if failure.cause == Cause::Expired {
            tracing::info!(kind, "a watch has expired; listing again");
        } else if new {
            tracing::warn!(kind, error = failure.why, "changes are not seen; trying again");
        } else {
            tracing::debug!(kind, error = failure.why, "changes are still not seen; trying again");
        }
        let pause = self.pauses.failed(failure.cause, rand::random());
        tokio::time::sleep(pause).await;
    }

    fn works(&mut self) {
        self.resumes = 0;
        self.pauses.works();
        self.seen();
    }

    fn seen(&self) {
        if let Some(since) = self.sight.works() {
            tracing::info!(kind = self.sight.kind(), blind_since = %since, "changes are seen again");
        }
    }
}

struct Failure {
    cause: Cause,
    why: String,
}

impl Failure {
    fn of(error: &kube::Error) -> Self {
        let cause = match error {
            kube::Error::Api(status) if status.code == 410 => Cause::Expired,
            kube::Error::Api(status) => {
                let after =
                    status.details.as_ref().map_or(0, |details| details.retry_after_seconds);
                let after = Duration::from_secs(after.into());
                Cause::Answered { retry_after: Some(after).filter(|after| !after.is_zero()) }
            }
            kube::Error::SerdeError(_) | kube::Error::FromUtf8(_) => {
                Cause::Answered { retry_after: None }
            }
            _ => Cause::Unreached,
        };
        Self { cause, why: told(error) }
    }

    fn late() -> Self {
        let why = format!("no answer within {} s", ANSWER.as_secs());
        Self { cause: Cause::Unreached, why }
    }
}
