//! Files that are made from the code.

use std::{fs, path::Path};

use anyhow::Context as _;

/// File name below the root, and content.
fn files() -> anyhow::Result<Vec<(String, String)>> {
    let mut files = Vec::new();
    for crd in cluster::crds::all() {
        let name = format!("config/crd/{}.yaml", crd.spec.names.plural);
        let yaml = serde_yaml_ng::to_string(&crd)?;
        files.push((name, format!("# Made by `cargo run -p dormouse-xtask -- generate`.\n{yaml}")));
    }
    Ok(files)
}

pub fn write(root: &Path) -> anyhow::Result<()> {
    for (name, content) in files()? {
        let path = root.join(&name);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(&path, content).with_context(|| name.clone())?;
        println!("wrote {name}");
    }
    Ok(())
}

pub fn faults(root: &Path) -> anyhow::Result<Vec<String>> {
    let mut faults = Vec::new();
    for (name, content) in files()? {
        let current = fs::read_to_string(root.join(&name)).ok();
        if current.as_deref() != Some(&content) {
            faults.push(format!(
                "{name} is not current: run `cargo run -p dormouse-xtask -- generate`"
            ));
        }
    }
    Ok(faults)
}
