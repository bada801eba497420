//! The REST surface: from an HTTP request to a response.

mod create;
mod delete;
mod finish;
mod kubelet;
mod options;
mod patch;
mod path;
mod read;
mod respond;
mod scale;
mod subresource;
mod update;
mod watch;

use std::sync::Arc;

use axum::body::Body;
use http::{Method, Request, Response, header};
use http_body_util::BodyExt as _;
use parking_lot::RwLock;
use serde_json::Value;

use super::protobuf;
use super::registry::{Registry, Resource};
use super::status::ApiError;
use super::store::Store;
use options::Options;
use path::{Route, Target};
use respond::Shape;

/// The largest request body, as API servers have it.
pub const BODY_LIMIT: usize = 3 * 1024 * 1024;

/// How long a body may take to come.
const BODY_DEADLINE: std::time::Duration = std::time::Duration::from_secs(60);

/// What all requests share.
pub struct App {
    pub store: Store,
    registry: RwLock<Arc<Registry>>,
    pub kubelets: kubelet::Kubelets,
    pub shutdown: tokio_util::sync::CancellationToken,
}

pub use create::bootstrap;
pub use kubelet::Kubelets;
pub use respond::{error, in_version, json_response, metadata_only};
pub use scale::selector_text;

impl App {
    pub fn new(
        store: Store,
        kubelets: Kubelets,
        shutdown: tokio_util::sync::CancellationToken,
    ) -> Self {
        let app = Self {
            store,
            registry: RwLock::new(Arc::new(Registry::with_builtins())),
            kubelets,
            shutdown,
        };
        for definition in app.store.all(super::crd::STORE_KEY, "") {
            app.sync_definition(&definition);
        }
        app
    }

    pub fn registry(&self) -> Arc<Registry> {
        self.registry.read().clone()
    }

    /// Serves what the stored form of a CustomResourceDefinition says, from the next
    /// request on, or stops serving it when it is gone.
    pub fn sync_definition(&self, definition: &Value) {
        let (group, plural) = super::crd::group_and_plural(definition);
        let mut slot = self.registry.write();
        // Read under the lock, so that of two changes the later one stays.
        let current = self.store.get(super::crd::STORE_KEY, "", super::meta::name(definition));
        let mut registry = Registry::clone(&slot);
        registry.remove_custom(group, plural);
        for resource in current.iter().flat_map(|current| super::crd::resources(current)) {
            registry.insert(resource);
        }
        *slot = Arc::new(registry);
        if current.is_none() {
            self.store.end_watches_of(&super::registry::store_key(group, plural));
        }
    }
}

/// Goes on with what was under way when the process ended.
pub fn resume(app: &Arc<App>) {
    for definition in app.store.all(super::crd::STORE_KEY, "") {
        if super::meta::is_terminating(&definition) {
            super::crd::clean_up(app.clone(), super::meta::name(&definition).to_owned());
        }
    }
}

/// Deletes one custom resource whose definition goes, as a client would.
pub async fn delete_custom(app: &Arc<App>, key: &Arc<str>, object: &Value) {
    let (namespace, name) =
        (super::meta::namespace(object).to_owned(), super::meta::name(object).to_owned());
    let deleted = app
        .store
        .write(key, &namespace, &name, |current| match current {
            None => Err(ApiError::no_such_resource()),
            Some(current) => Ok(delete::plain(current, jiff::Timestamp::now())),
        })
        .await;
    if let Err(error) = deleted
        && error.code != 404
    {
        tracing::warn!(%error, name, "cannot delete an object of a definition that goes");
    }
}

/// One request, taken apart.
struct Call {
    resource: Arc<Resource>,
    target: Target,
    options: Options,
    shape: Shape,
}

/// Answers one authenticated request.
pub async fn handle(app: Arc<App>, request: Request<Body>) -> Response<Body> {
    match route(&app, request).await {
        Ok(response) => response,
        Err(error) => respond::error(&error),
    }
}

async fn route(app: &Arc<App>, request: Request<Body>) -> Result<Response<Body>, ApiError> {
    let (parts, body) = request.into_parts();
    let registry = app.registry();
    if let Some(answer) = super::discovery::answer(app, &registry, &parts) {
        return answer;
    }
    if let Some(kind) = super::access::is_review(parts.uri.path()) {
        if parts.method != Method::POST {
            return Err(ApiError::method_not_allowed());
        }
        return super::access::review(kind, read_object(&parts, body).await?);
    }
    let Some(Route { resource, target }) = path::parse(&registry, parts.uri.path()) else {
        return Err(ApiError::no_such_resource());
    };
    let call = Call {
        resource,
        target,
        options: Options::parse(&parts)?,
        shape: Shape::negotiate(&parts.headers)?,
    };
    if let Some(name) = call.target.subresource.clone() {
        return subresource::serve(app, call, &name, &parts, body).await;
    }
    match (&parts.method, call.target.name.is_some()) {
        (&Method::GET, true) if !call.options.watch => read::get(app, &call),
        (&Method::GET, _) if call.options.watch => watch::watch(app, &call),
        (&Method::GET, _) => read::list(app, &call),
        (&Method::POST, false) => {
            let object = read_object(&parts, body).await?;
            create::create(app, call, object).await
        }
        (&Method::PUT, true) => {
            let object = read_object(&parts, body).await?;
            update::replace(app, call, object).await
        }
        (&Method::PATCH, true) => {
            let patch = patch::Patch::read(&parts, read_body(body).await?)?;
            patch::patch(app, call, patch, "").await
        }
        (&Method::DELETE, true) => {
            let options = delete_options(&parts, body).await?;
            delete::delete(app, call, options).await
        }
        (&Method::DELETE, false) => {
            let options = delete_options(&parts, body).await?;
            delete::delete_collection(app, call, options).await
        }
        _ => Err(ApiError::method_not_allowed()),
    }
}

async fn read_body(body: Body) -> Result<bytes::Bytes, ApiError> {
    let reading = http_body_util::Limited::new(body, BODY_LIMIT).collect();
    let Ok(read) = tokio::time::timeout(BODY_DEADLINE, reading).await else {
        return Err(ApiError::bad_request("the request's body did not come in time"));
    };
    match read {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            Err(ApiError::too_large(BODY_LIMIT))
        }
        Err(error) => {
            Err(ApiError::bad_request(format!("cannot read the request's body: {error}")))
        }
    }
}

/// Reads a JSON, YAML or protobuf object.
async fn read_object(parts: &http::request::Parts, body: Body) -> Result<Value, ApiError> {
    let kind = content_type(parts);
    if !matches!(
        kind,
        "" | "application/json" | "application/yaml" | "application/x-yaml" | protobuf::MEDIA_TYPE
    ) {
        return Err(ApiError::unsupported_media_type(format!(
            "the body of the request was in an unknown format - accepted media types include: application/json, application/yaml, application/vnd.kubernetes.protobuf (got {kind})"
        )));
    }
    let bytes = read_body(body).await?;
    if kind == protobuf::MEDIA_TYPE {
        return protobuf::decode(&bytes).map_err(|why| {
            ApiError::unsupported_media_type(format!("cannot read the protobuf body: {why}"))
        });
    }
    parse_object(&bytes)
}

fn content_type(parts: &http::request::Parts) -> &str {
    let value = parts.headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("");
    value.split(';').next().unwrap_or("").trim()
}

fn parse_object(body: &[u8]) -> Result<Value, ApiError> {
    let value: Value = match serde_json::from_slice(body) {
        Ok(value) => value,
        Err(json_error) if body.trim_ascii_start().starts_with(b"{") => {
            return Err(ApiError::bad_request(format!(
                "the object provided is not valid JSON: {json_error}"
            )));
        }
        Err(_) => serde_yaml_ng::from_slice(body).map_err(|error| {
            ApiError::bad_request(format!("the object provided is not valid: {error}"))
        })?,
    };
    if value.is_object() {
        Ok(value)
    } else {
        Err(ApiError::bad_request("the body must be an object"))
    }
}

/// DeleteOptions come in the body, in the query, or not at all.
async fn delete_options(
    parts: &http::request::Parts,
    body: Body,
) -> Result<delete::DeleteOptions, ApiError> {
    let bytes = read_body(body).await?;
    let value = if bytes.is_empty() {
        Value::Null
    } else if content_type(parts) == protobuf::MEDIA_TYPE {
        protobuf::decode(&bytes)
            .map_err(|why| ApiError::bad_request(format!("cannot read the protobuf body: {why}")))?
    } else {
        parse_object(&bytes)?
    };
    delete::DeleteOptions::parse(&value, parts)
}
