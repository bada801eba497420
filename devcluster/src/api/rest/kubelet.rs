//! Requests that the API server passes on to a pod's node.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use futures::TryStreamExt as _;
use http::{HeaderValue, Response, StatusCode, header};
use serde_json::Value;

use super::{App, Call};
use crate::api::status::ApiError;

/// How long a node may take to begin its answer.
const NODE_DEADLINE: Duration = Duration::from_secs(30);

/// The client for nodes' own HTTPS endpoints.
pub struct Kubelets {
    client: reqwest::Client,
}

impl Kubelets {
    /// `identity` is the client certificate and key (PEM) that nodes know this server by.
    /// Nodes' certificates are made by themselves, as in a cluster whose API server has no
    /// kubelet authority: they are not verified.
    pub fn new(identity: &str) -> Result<Self, reqwest::Error> {
        let client = reqwest::Client::builder()
            .tls_danger_accept_invalid_certs(true)
            .identity(reqwest::Identity::from_pem(identity.as_bytes())?)
            .connect_timeout(Duration::from_secs(5))
            .no_proxy()
            .build()?;
        Ok(Self { client })
    }

    /// `pods/NAME/log`: streams what the node answers.
    pub(super) async fn log(
        &self,
        app: &Arc<App>,
        call: &Call,
    ) -> Result<Response<Body>, ApiError> {
        let (namespace, name) = (call.target.namespace.as_str(), call.name());
        let pod = app.store.get("/pods", namespace, name).ok_or_else(|| call.not_found())?;
        let container = container_of(&pod, name, call.options.raw("container"))?;
        let Some(node) = pod["spec"]["nodeName"].as_str().filter(|node| !node.is_empty()) else {
            // Nothing runs yet, so nothing was written.
            return Ok(plain(Body::empty()));
        };
        let node_object = app.store.get("/nodes", "", node).ok_or_else(|| {
            ApiError::internal(format!("node {node:?} of the pod does not exist"))
        })?;
        let (host, port) = endpoint(&node_object).ok_or_else(|| {
            ApiError::internal(format!("node {node:?} does not say where its logs are served"))
        })?;
        let host = if host.contains(':') { format!("[{host}]") } else { host };
        let mut query: Vec<(&str, &str)> = Vec::new();
        for key in [
            "follow",
            "previous",
            "tailLines",
            "limitBytes",
            "timestamps",
            "sinceSeconds",
            "sinceTime",
        ] {
            if let Some(value) = call.options.raw(key) {
                query.push((key, value));
            }
        }
        let base = format!("https://{host}:{port}/containerLogs/{namespace}/{name}/{container}");
        let mut url =
            reqwest::Url::parse(&base).map_err(|error| ApiError::internal(error.to_string()))?;
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let unreachable = |why: String| {
            ApiError::internal(format!(
                "cannot get the log from node {node:?} at {host}:{port}: {why}"
            ))
        };
        let answer = tokio::time::timeout(NODE_DEADLINE, self.client.get(url).send())
            .await
            .map_err(|_| unreachable("no answer in time".to_owned()))?
            .map_err(|error| unreachable(without_url(error)))?;
        let status = answer.status();
        if !status.is_success() {
            let text = tokio::time::timeout(NODE_DEADLINE, answer.text()).await;
            let text = text.ok().and_then(Result::ok).unwrap_or_default();
            let text: String = text.trim().chars().take(500).collect();
            let mut error = ApiError::bad_request(text);
            if status != StatusCode::BAD_REQUEST {
                error = ApiError::internal(format!(
                    "node {node:?} answered {status}: {}",
                    error.message
                ));
                if status == StatusCode::NOT_FOUND {
                    error.code = 404;
                    error.reason = "NotFound";
                }
            }
            return Err(error);
        }
        let shutdown = app.shutdown.clone();
        let stream = answer.bytes_stream().map_err(std::io::Error::other);
        let stream = futures::StreamExt::take_until(stream, shutdown.cancelled_owned());
        Ok(plain(Body::from_stream(stream)))
    }
}

fn without_url(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(inner) = source {
        text.push_str(&format!(": {inner}"));
        source = inner.source();
    }
    text
}

fn plain(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}

/// The container that is meant: the only one, unless the client says which.
fn container_of<'a>(
    pod: &'a Value,
    pod_name: &str,
    asked: Option<&'a str>,
) -> Result<&'a str, ApiError> {
    let names = |field: &str| -> Vec<&'a str> {
        let list = pod["spec"][field].as_array();
        list.into_iter().flatten().filter_map(|c| c["name"].as_str()).collect()
    };
    let (containers, init) = (names("containers"), names("initContainers"));
    match asked.filter(|name| !name.is_empty()) {
        Some(name) if containers.contains(&name) || init.contains(&name) => Ok(name),
        Some(name) => {
            Err(ApiError::bad_request(format!("container {name} is not valid for pod {pod_name}")))
        }
        None => match containers.as_slice() {
            [only] => Ok(only),
            many => Err(ApiError::bad_request(format!(
                "a container name must be specified for pod {pod_name}, choose one of: [{}]",
                many.join(" ")
            ))),
        },
    }
}

/// Address and port of a node's endpoint.
fn endpoint(node: &Value) -> Option<(String, u64)> {
    let addresses = node["status"]["addresses"].as_array()?;
    let of = |kind: &str| {
        addresses
            .iter()
            .find(|a| a["type"] == kind)
            .and_then(|a| a["address"].as_str())
            .map(str::to_owned)
    };
    let address = of("InternalIP").or_else(|| of("ExternalIP")).or_else(|| of("Hostname"))?;
    let port =
        node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64().unwrap_or(10250);
    Some((address, port))
}
