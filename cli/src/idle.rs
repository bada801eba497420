//! `dormouse idle`: what the gateways' judge makes of recorded traffic.

use std::{fs, path::PathBuf};

use anyhow::{Context, ensure};
use clap::{Args, Subcommand};
use domain::classify::replay::replay;

#[derive(Subcommand)]
pub enum Order {
    /// Print what would have counted as use in recordings of traffic
    #[command(
        long_about = "Print what would have counted as use in recordings of traffic: one line of JSON per file, with what \
                      happened from the beginning of the recording's window to its end.\n\nA recording has one JSON object a \
                      line. The first is about the recording: kind (\"meta\"), case, app, window ([from, to] in seconds). The \
                      others are events: t (seconds), kind (http, wsopen, ws, wsclose, ssh, act) and what belongs to it: \
                      method, path, q, fetch, conn, dir (c2s, s2c), opcode, msg_type.",
        after_help = "Example:\n  $ dormouse idle replay lab_idle.jsonl\n  \
                      {\"case\":\"lab_idle\",\"person\":0,\"work\":0,\"noise\":30,\"unknown\":0,\"active_minutes\":0}"
    )]
    Replay(Files),
}

#[derive(Args)]
pub struct Files {
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
}

/// A recording of hours is a few megabytes.
const FILE_MAX: u64 = 1 << 30;

pub fn run(order: &Order) -> anyhow::Result<()> {
    let Order::Replay(Files { files }) = order;
    for file in files {
        let about = || format!("{} is no recording", file.display());
        let length =
            fs::metadata(file).with_context(|| format!("reading {}", file.display()))?.len();
        ensure!(length <= FILE_MAX, "{} is too large for a recording", file.display());
        let bytes = fs::read(file).with_context(|| format!("reading {}", file.display()))?;
        let text = String::from_utf8(bytes).with_context(about)?;
        let counts = replay(&text).with_context(about)?;
        println!("{}", serde_json::to_string(&counts)?);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn what_is_no_recording_is_said_with_its_name() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"hello").unwrap();
        let order = |path: &std::path::Path| Order::Replay(Files { files: vec![path.to_owned()] });
        let error = run(&order(file.path())).unwrap_err();
        let name = file.path().display().to_string();
        assert_eq!(error.to_string(), format!("{name} is no recording"));
        assert!(run(&order("/nowhere".as_ref())).unwrap_err().to_string().contains("/nowhere"));
    }
}
