//! What all parts of the node share.

use super::NodeOptions;
use super::address::PodAddresses;
use super::env::Place;
use super::events::Recorder;
use super::pod::PodShared;
use dashmap::DashMap;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub struct NodeContext {
    pub client: kube::Client,
    pub options: NodeOptions,
    pub recorder: Recorder,
    pub http: reqwest::Client,
    pub dirs: Dirs,
    pub host_ip: IpAddr,
    pub allocatable: BTreeMap<String, String>,
    pub addresses: Mutex<PodAddresses>,
    /// Begins the mark of every process this node starts; the same in each of its lives.
    pub mark: String,
    /// The pods on this node by namespace and name.
    pub pods: DashMap<(String, String), Arc<PodShared>>,
}

impl NodeContext {
    pub fn place(&self, pod_ip: IpAddr) -> Place {
        Place { pod_ip, host_ip: self.host_ip, allocatable: self.allocatable.clone() }
    }
}

/// Where the node keeps its files.
#[derive(Debug, Clone)]
pub struct Dirs {
    root: PathBuf,
}

impl Dirs {
    /// Creates the folders, for the owner's eyes only: they hold secrets.
    pub fn create(root: &Path) -> io::Result<Self> {
        let mut private = std::fs::DirBuilder::new();
        private.recursive(true).mode(0o700);
        private.create(root)?;
        // Processes have working directories of their own: paths must not depend on the node's.
        let dirs = Self { root: root.canonicalize()? };
        for dir in [dirs.pods(), dirs.logs(), dirs.volumes(), dirs.node()] {
            private.create(dir)?;
        }
        Ok(dirs)
    }

    pub fn pods(&self) -> PathBuf {
        self.root.join("pods")
    }

    pub fn pod(&self, uid: &str) -> PathBuf {
        self.pods().join(uid)
    }

    pub fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    pub fn volumes(&self) -> PathBuf {
        self.root.join("volumes")
    }

    /// The node's own notes.
    pub fn node(&self) -> PathBuf {
        self.root.join("node")
    }

    /// The mark of this node's processes, made at its first start.
    pub fn mark(&self) -> io::Result<String> {
        let file = self.node().join("mark");
        match std::fs::read_to_string(&file) {
            Ok(mark) if !mark.trim().is_empty() => Ok(mark.trim().to_owned()),
            Ok(_) | Err(_) => {
                let mark = uuid::Uuid::new_v4().simple().to_string();
                std::fs::write(&file, &mark)?;
                Ok(mark)
            }
        }
    }
}
