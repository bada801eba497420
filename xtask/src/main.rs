//! The project's own checks and generated files.

mod documents;
mod generate;
mod house;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "The project's own checks and generated files")]
struct Cli {
    #[command(subcommand)]
    order: Order,
}

#[derive(Subcommand)]
enum Order {
    /// Check the rules of the house and that generated files are current
    Check,
    /// Write the generated files
    Generate,
}

fn main() -> ExitCode {
    let result = match Cli::parse().order {
        Order::Check => check(),
        Order::Generate => root().and_then(|root| generate::write(&root)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn root() -> anyhow::Result<PathBuf> {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    Ok(here.parent().context("the project's root")?.to_owned())
}

fn check() -> anyhow::Result<()> {
    let root = root()?;
    let mut faults = house::faults(&root)?;
    faults.extend(documents::faults(&root)?);
    faults.extend(generate::faults(&root)?);
    for fault in &faults {
        eprintln!("{fault}");
    }
    anyhow::ensure!(faults.is_empty(), "{} rules of the house are broken", faults.len());
    println!("The rules of the house hold, and generated files are current.");
    Ok(())
}
