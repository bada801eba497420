//! What people reach: a workspace or an app in a project.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::name::{ProjectName, WorkloadName};

/// The kinds that serve people. Batch jobs serve nobody and have no route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum WorkloadKind {
    Workspace,
    App,
}

impl WorkloadKind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Workspace => "Workspace",
            Self::App => "App",
        }
    }
}

impl fmt::Display for WorkloadKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Names one workload. Displayed as `Workspace alice/lab`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct WorkloadRef {
    pub kind: WorkloadKind,
    pub project: ProjectName,
    pub name: WorkloadName,
}

impl WorkloadRef {
    /// The one DNS label that stands for the workload under the base domain.
    pub fn host_label(&self) -> String {
        format!("{}--{}", self.name, self.project)
    }
}

impl fmt::Display for WorkloadRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.project, self.name)
    }
}

/// What a workload speaks, so far as telling a person from background chatter depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Default)]
pub enum Protocol {
    /// Plain HTTP: nothing is known of its background traffic.
    #[default]
    Http,
    Jupyter,
    Streamlit,
    VsCode,
}
