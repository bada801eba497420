//! The invariants that ARCHITECTURE.md lists and a program can check.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, ensure};
use serde_json::Value;

const SERVICES: [&str; 5] = ["proxy", "ssh-gateway", "authserver", "controller", "portal"];
/// What `domain` must not reach, directly or through others.
const NOT_IN_DOMAIN: [&str; 6] = ["tokio", "kube", "k8s-openapi", "pingora", "russh", "axum"];
/// The gateways do not know that Kubernetes exists.
const NOT_IN_GATEWAYS: [&str; 3] = ["kube", "k8s-openapi", "dormouse-cluster"];
/// Names that say nothing about what is inside.
const EMPTY_NAMES: [&str; 6] = ["common", "util", "utils", "helpers", "misc", "shared"];
/// What one head can hold, with some room for a last test.
const LINES_MAX: usize = 560;

pub fn faults(root: &Path) -> anyhow::Result<Vec<String>> {
    let mut faults = dependency_faults(root)?;
    for file in rust_files(root)? {
        let shown = file.strip_prefix(root).unwrap_or(&file).display().to_string();
        let lines = fs::read_to_string(&file)?.lines().count();
        if lines > LINES_MAX {
            faults.push(format!(
                "{shown} has {lines} lines: split it by topic (at most {LINES_MAX})"
            ));
        }
        let names =
            file.iter().filter_map(|part| part.to_str()).map(|part| part.trim_end_matches(".rs"));
        if let Some(name) = names.into_iter().find(|name| EMPTY_NAMES.contains(name)) {
            faults.push(format!("{shown}: the name `{name}` says nothing about what is inside"));
        }
    }
    Ok(faults)
}

/// Invariants 1 to 3, over what is really linked: normal dependencies, at any depth.
fn dependency_faults(root: &Path) -> anyhow::Result<Vec<String>> {
    let graph = Graph::read(root)?;
    let mut faults = Vec::new();
    for service in SERVICES {
        let reached = graph.reached(&format!("dormouse-{service}"))?;
        for other in SERVICES.iter().filter(|other| **other != service) {
            if reached.contains(&format!("dormouse-{other}")) {
                faults.push(format!("the service {service} imports the service {other}"));
            }
        }
    }
    let domain = graph.reached("dormouse-domain")?;
    for name in NOT_IN_DOMAIN.iter().filter(|name| domain.contains(**name)) {
        faults.push(format!("domain reaches {name}: its decisions are to be pure"));
    }
    for gateway in ["proxy", "ssh-gateway"] {
        let reached = graph.reached(&format!("dormouse-{gateway}"))?;
        for name in NOT_IN_GATEWAYS.iter().filter(|name| reached.contains(**name)) {
            faults.push(format!("{gateway} reaches {name}: a gateway is given a route table"));
        }
    }
    Ok(faults)
}

/// Names of packages by id, and what each links.
struct Graph {
    names: BTreeMap<String, String>,
    links: BTreeMap<String, Vec<String>>,
}

impl Graph {
    fn read(root: &Path) -> anyhow::Result<Self> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let output = Command::new(cargo)
            .args(["metadata", "--format-version", "1", "--locked", "--offline"])
            .current_dir(root)
            .output()
            .context("cargo metadata")?;
        ensure!(
            output.status.success(),
            "cargo metadata failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Self::parse(&serde_json::from_slice(&output.stdout)?)
    }

    fn parse(metadata: &Value) -> anyhow::Result<Self> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let packages = list(&metadata["packages"]);
        let names = packages.iter().map(|p| (text(&p["id"]), text(&p["name"]))).collect();
        let mut links = BTreeMap::new();
        for node in list(&metadata["resolve"]["nodes"]) {
            let normal = list(&node["deps"]).into_iter().filter(|dependency| {
                list(&dependency["dep_kinds"]).iter().any(|kind| kind["kind"].is_null())
            });
            links.insert(
                text(&node["id"]),
                normal.map(|dependency| text(&dependency["pkg"])).collect(),
            );
        }
        Ok(Self { names, links })
    }

    /// Names of everything that a package links, at any depth, without itself.
    fn reached(&self, package: &str) -> anyhow::Result<BTreeSet<String>> {
        let start = self.names.iter().find(|(_, name)| *name == package);
        let (start, _) = start.with_context(|| format!("there is no package {package}"))?;
        let mut seen = BTreeSet::new();
        let mut open = vec![start];
        while let Some(id) = open.pop() {
            for next in self.links.get(id).into_iter().flatten() {
                if seen.insert(next) {
                    open.push(next);
                }
            }
        }
        Ok(seen.into_iter().filter_map(|id| self.names.get(id).cloned()).collect())
    }
}

fn rust_files(root: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "*.rs"])
        .current_dir(root)
        .output()
        .context("git ls-files")?;
    ensure!(output.status.success(), "git ls-files failed");
    let names = String::from_utf8(output.stdout)?;
    Ok(names.lines().map(|name| root.join(name)).filter(|path| path.is_file()).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_linked_at_any_depth_is_found_and_what_only_tests_use_is_not() {
        let dep = |pkg: &str, kind: Value| json!({"pkg": pkg, "dep_kinds": [{"kind": kind}]});
        let graph = Graph::parse(&json!({
            "packages": [{"id": "a", "name": "dormouse-domain"}, {"id": "b", "name": "between"},
                {"id": "c", "name": "tokio"}, {"id": "d", "name": "proptest"}],
            "resolve": {"nodes": [
                {"id": "a", "deps": [dep("b", Value::Null), dep("d", json!("dev"))]},
                {"id": "b", "deps": [dep("c", Value::Null)]},
                {"id": "c", "deps": []}, {"id": "d", "deps": []}]},
        }))
        .expect("it parses");
        let reached = graph.reached("dormouse-domain").expect("it is there");
        assert!(reached.contains("tokio") && reached.contains("between"));
        assert!(!reached.contains("proptest"));
        assert!(graph.reached("nobody").is_err());
    }
}
