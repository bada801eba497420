//! Says that all is up: to a person on standard output, to a program in the ready file.

use std::path::Path;

use anyhow::Context as _;
use domain::workload::{WorkloadKind, WorkloadRef};
use serde_json::{Value, json};

use super::{Options, people::Credentials, place::Place, services::Addresses};

/// A file left by an earlier run would say "ready" too early.
pub fn remove(file: &Path) -> anyhow::Result<()> {
    match std::fs::remove_file(file) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => {
            Err(error).with_context(|| format!("cannot replace the ready file {}", file.display()))
        }
    }
}

pub fn announce(
    options: &Options,
    addresses: &Addresses,
    place: &Place,
    kubeconfig: &Path,
    people: &[Credentials],
    workloads: &[WorkloadRef],
) -> anyhow::Result<()> {
    let ca = place.path("tls/ca.pem");
    let kubeconfig = std::path::absolute(kubeconfig).unwrap_or_else(|_| kubeconfig.to_owned());
    print_summary(addresses, &ca, &kubeconfig, people, workloads, options);
    let Some(file) = &options.ready_file else { return Ok(()) };
    let content = json!({
        "portal": addresses.portal,
        "issuer": addresses.issuer,
        "ca": ca,
        "kubeconfig": kubeconfig,
        "ssh": {"host": "127.0.0.1", "port": addresses.ssh.port()},
        "users": people,
        "workloads": workloads
            .iter()
            .map(|workload| entry(workload, &options.base_domain, addresses))
            .collect::<Vec<_>>(),
    });
    // Whole or not at all, and private: it holds tokens.
    runtime::secret::write(file, &serde_json::to_vec_pretty(&content)?)?;
    Ok(())
}

/// Not taken from the workload's status, which an earlier run on other ports may have written.
fn url(workload: &WorkloadRef, base_domain: &str, addresses: &Addresses) -> String {
    let port = addresses.https.port();
    let port = if port == 443 { String::new() } else { format!(":{port}") };
    format!("https://{}.{base_domain}{port}/", workload.host_label())
}

fn entry(workload: &WorkloadRef, base_domain: &str, addresses: &Addresses) -> Value {
    let ssh = workload.kind == WorkloadKind::Workspace;
    json!({
        "kind": workload.kind,
        "name": workload.name,
        "project": workload.project,
        "url": url(workload, base_domain, addresses),
        "ssh_user": ssh.then(|| workload.name.to_string()),
    })
}

fn print_summary(
    addresses: &Addresses,
    ca: &Path,
    kubeconfig: &Path,
    people: &[Credentials],
    workloads: &[WorkloadRef],
    options: &Options,
) {
    println!("\nDormouse is up.\n\n  Open       {}", addresses.portal);
    for person in people {
        println!("  Sign in    {} with password {}", person.name, person.password);
    }
    for workload in workloads {
        println!(
            "  {:<10} {}",
            workload.name.as_str(),
            url(workload, &options.base_domain, addresses)
        );
    }
    if let Some(lab) = workloads.iter().find(|w| w.kind == WorkloadKind::Workspace) {
        println!(
            "  SSH        ssh -p {} {}@127.0.0.1   (password: a token of the person)",
            addresses.ssh.port(),
            lab.name,
        );
    }
    println!("  kubectl    kubectl --kubeconfig {} get workspaces,apps -A", kubeconfig.display());
    println!("  CA         {}   (import it in the browser to be rid of its warning)", ca.display());
    // As this program was called: it is seldom in the PATH of who has just built it.
    let program = std::env::args_os().next().unwrap_or_else(|| "dormouse".into());
    println!(
        "  Token      {} auth token --data-dir {} --user alice",
        program.display(),
        options.data_dir.display()
    );
    println!(
        "\nUnused workloads sleep after {}. Ctrl-C stops everything.\n",
        humantime::format_duration(options.idle_after)
    );
}
