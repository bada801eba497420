//! From a container's spec to the process to start, with its hooks and probes.

use super::Runner;
use crate::node::context::NodeContext;
use crate::node::env::{self, Sources};
use crate::node::probe::Timing;
use crate::node::probe::action::{Action, ProgramPath};
use crate::node::shim::protocol::Command;
use crate::node::volumes;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::Api;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where containers look for programs after the node's own directories, if the node has no `PATH`.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const API_DEADLINE: Duration = Duration::from_secs(10);

/// What a container will run and how it is watched.
pub struct Plan {
    pub command: Command,
    pub termination_log: PathBuf,
    pub post_start: Option<Action>,
    pub pre_stop: Option<Action>,
    pub startup: Option<Probe>,
    pub liveness: Option<Probe>,
    pub readiness: Option<Probe>,
}

pub struct Probe {
    pub action: Action,
    pub timing: Timing,
    /// A grace of its own for the container it finds unfit.
    pub grace: Option<Duration>,
}

/// Why a container cannot be started.
pub enum NotReady {
    /// What it refers to is not there: the container waits for it.
    Config(String),
    /// It cannot be started as it is: an end like any other.
    Start(String),
}

impl Runner {
    pub(super) async fn plan(&self) -> Result<Plan, NotReady> {
        let config = |error: &dyn std::fmt::Display| NotReady::Config(error.to_string());
        let start = |error: &dyn std::fmt::Display| NotReady::Start(error.to_string());
        let container = &self.container;
        let pod = &self.pod.pod;
        let place = &self.surroundings.place;
        let sources = self.sources().await?;

        let own = self.ctx.dirs.pod(&self.pod.uid);
        let home = own.join("home");
        let termination_log = own.join("termination").join(&container.name);
        make_room(&home, &termination_log)
            .map_err(|e| config(&format!("{}: {e}", own.display())))?;
        let message_path = container
            .termination_message_path
            .clone()
            .unwrap_or_else(|| "/dev/termination-log".to_owned());
        let extra = [(message_path, termination_log.to_string_lossy().into_owned())];
        let mounted = &self.surroundings.mounted;
        let paths = volumes::paths(mounted, pod, container, place, &sources, extra)
            .map_err(|e| config(&e))?;

        let base = base_env(&self.ctx, &self.pod.name, &home, paths.mapped("/tmp"));
        let mut env =
            env::resolve(pod, container, place, &sources, &paths, base).map_err(|e| config(&e))?;
        let path = search_path(&self.ctx.options.path, env.get("PATH").map(String::as_str));
        env.insert("PATH".to_owned(), path);
        env.insert("DORMOUSE_POD_LOOPBACK".to_owned(), place.pod_ip.to_string());

        let cwd = match container.working_dir.as_deref().filter(|dir| !dir.is_empty()) {
            Some(dir) => home.join(paths.apply(dir)),
            None => home,
        };
        let words = container.command.iter().flatten();
        if container.command.as_ref().is_none_or(Vec::is_empty) {
            let message =
                "no command is given: on this node the image is only a label, so set command";
            return Err(start(&format!("container {}: {message}", container.name)));
        }
        let argv = words
            .chain(container.args.iter().flatten())
            .map(|word| env::expand(&paths.apply(word), |name| env.get(name).cloned()))
            .collect();
        let programs = ProgramPath { env: &env, paths: &paths, cwd: &cwd };
        let argv = programs.find(argv).map_err(|e| start(&e))?;

        let ip = place.pod_ip;
        let hooks = container.lifecycle.as_ref();
        let hook =
            |hook| Self::action(hook, |hook| Action::of_hook(hook, container, ip, &programs));
        let probe = |probe: &Option<k8s_openapi::api::core::v1::Probe>| {
            probe.as_ref().map(|probe| Probe {
                action: Action::of_probe(probe, container, ip, &programs),
                timing: Timing::of(probe),
                grace: (probe.termination_grace_period_seconds)
                    .and_then(|seconds| u64::try_from(seconds).ok())
                    .map(Duration::from_secs),
            })
        };
        let (post_start, pre_stop) = (
            hook(hooks.and_then(|hooks| hooks.post_start.as_ref())),
            hook(hooks.and_then(|hooks| hooks.pre_stop.as_ref())),
        );
        let (startup, liveness, readiness) = (
            probe(&container.startup_probe),
            probe(&container.liveness_probe),
            probe(&container.readiness_probe),
        );
        let cwd = cwd.to_string_lossy().into_owned();
        let command = Command { argv, env, cwd };
        Ok(Plan { command, termination_log, post_start, pre_stop, startup, liveness, readiness })
    }

    /// The config maps and secrets that the container's environment refers to, as far as they exist.
    async fn sources(&self) -> Result<Sources, NotReady> {
        let (maps, secrets) = env::references(&self.container);
        let map_api: Api<ConfigMap> = Api::namespaced(self.ctx.client.clone(), &self.pod.namespace);
        let secret_api: Api<Secret> = Api::namespaced(self.ctx.client.clone(), &self.pod.namespace);
        let mut sources = Sources::default();
        let fetch = async {
            for name in maps {
                if let Some(map) = map_api.get_opt(&name).await? {
                    sources.config_maps.insert(name, map);
                }
            }
            for name in secrets {
                if let Some(secret) = secret_api.get_opt(&name).await? {
                    sources.secrets.insert(name, secret);
                }
            }
            Ok::<(), kube::Error>(())
        };
        match tokio::time::timeout(API_DEADLINE, fetch).await {
            Ok(Ok(())) => Ok(sources),
            Ok(Err(error)) => Err(NotReady::Config(error.to_string())),
            Err(_) => Err(NotReady::Config("the API server does not answer in time".to_owned())),
        }
    }
}

fn make_room(home: &Path, termination_log: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(home)?;
    if let Some(dir) = termination_log.parent() {
        std::fs::create_dir_all(dir)?;
    }
    // Of this run alone.
    std::fs::write(termination_log, "")
}

/// What an image would have set.
fn base_env(
    ctx: &NodeContext,
    pod: &str,
    home: &Path,
    tmp: Option<&str>,
) -> BTreeMap<String, String> {
    let mut env = BTreeMap::from([
        ("HOME".to_owned(), home.to_string_lossy().into_owned()),
        ("HOSTNAME".to_owned(), pod.to_owned()),
        ("LANG".to_owned(), "C.UTF-8".to_owned()),
    ]);
    if let Some(tmp) = tmp {
        env.insert("TMPDIR".to_owned(), tmp.to_owned());
    }
    env.extend(ctx.options.env.iter().cloned());
    env
}

/// The node's directories first, then the container's own `PATH` or the node's.
fn search_path(node: &[PathBuf], own: Option<&str>) -> String {
    let mut path: Vec<String> = node.iter().map(|dir| dir.to_string_lossy().into_owned()).collect();
    match own.filter(|own| !own.is_empty()) {
        Some(own) => path.push(own.to_owned()),
        None => path.push(
            std::env::var("PATH")
                .ok()
                .filter(|p| !p.is_empty())
                .unwrap_or_else(|| DEFAULT_PATH.to_owned()),
        ),
    }
    path.join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nodes_programs_come_first() {
        let node = [PathBuf::from("/venv/bin")];
        assert_eq!(search_path(&node, Some("/bin")), "/venv/bin:/bin");
        assert!(search_path(&node, None).starts_with("/venv/bin:/"));
    }
}
