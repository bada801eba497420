//! What the node says about its machine.

use k8s_openapi::api::core::v1::NodeSystemInfo;
use std::collections::BTreeMap;

/// Kubernetes' names for the machine's processor and system.
pub fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

pub fn os() -> &'static str {
    std::env::consts::OS
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default()
}

/// The value of a line `NAME=value` of `/etc/os-release`.
fn os_release(text: &str, name: &str) -> Option<String> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))?;
    Some(line.trim_matches('"').to_owned())
}

/// `MemTotal` of `/proc/meminfo` in bytes.
fn memory(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

pub fn system_info() -> NodeSystemInfo {
    let version = format!("v1.33.0+dormouse-{}", env!("CARGO_PKG_VERSION"));
    NodeSystemInfo {
        architecture: arch().to_owned(),
        operating_system: os().to_owned(),
        kernel_version: read("/proc/sys/kernel/osrelease"),
        os_image: os_release(&read("/etc/os-release"), "PRETTY_NAME")
            .unwrap_or_else(|| os().to_owned()),
        boot_id: read("/proc/sys/kernel/random/boot_id"),
        machine_id: read("/etc/machine-id"),
        system_uuid: read("/etc/machine-id"),
        container_runtime_version: format!("process://{}", env!("CARGO_PKG_VERSION")),
        kubelet_version: version.clone(),
        kube_proxy_version: version,
        swap: None,
    }
}

/// Quantities by resource.
pub fn capacity(pods: u32) -> BTreeMap<String, String> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let memory = memory(&read("/proc/meminfo")).unwrap_or(1 << 30);
    BTreeMap::from([
        ("cpu".to_owned(), cores.to_string()),
        ("memory".to_owned(), format!("{}Ki", memory / 1024)),
        ("pods".to_owned(), pods.to_string()),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_read() {
        assert_eq!(
            os_release("NAME=x\nPRETTY_NAME=\"Debian 12\"\n", "PRETTY_NAME").as_deref(),
            Some("Debian 12")
        );
        assert_eq!(memory("MemFree: 1 kB\nMemTotal:       2048 kB\n"), Some(2048 * 1024));
        assert_eq!(memory("MemTotal: lots"), None);
        assert_eq!(capacity(7).get("pods").map(String::as_str), Some("7"));
    }
}
