//! What the node and a shim say to each other: frames of a little-endian `u32` length and that many bytes of JSON.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Longest frame either side accepts, in bytes: room for an environment as large as the kernel allows (`ARG_MAX`).
pub const MAX_FRAME: usize = 8 << 20;

/// Most output of an exec that is kept, in bytes, as in Kubernetes' exec probes.
pub const MAX_EXEC_OUTPUT: usize = 10 << 10;

/// From the node to the shim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// The first frame, once: what to run.
    Start(Command),
    /// Runs a program beside the container's process, in its environment and working directory.
    Exec { id: u64, argv: Vec<String>, timeout_ms: Option<u64> },
    /// SIGTERM, and SIGKILL to everything that is left after `grace_ms`.
    Stop { grace_ms: u64 },
}

/// A program and its surroundings. `argv[0]` is the path to execute; it is not searched for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    pub argv: Vec<String>,
    pub env: BTreeMap<String, String>,
    pub cwd: String,
}

/// From the shim to the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Notice {
    Started {
        pid: i32,
    },
    StartFailed {
        message: String,
    },
    ExecDone {
        id: u64,
        outcome: ExecOutcome,
        output: String,
    },
    /// The container's process ended, and so did everything it had started. The last frame.
    Exited(Exit),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExecOutcome {
    Exited(Exit),
    StartFailed { message: String },
    TimedOut,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    Code(i32),
    Signal(i32),
}

impl Exit {
    /// The exit code as container runtimes give it: 128 and the signal's number for a process that was killed.
    pub fn code(self) -> i32 {
        match self {
            Exit::Code(code) => code,
            Exit::Signal(signal) => 128 + signal,
        }
    }
}

/// Why bytes could not be taken for frames.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error("a frame of {0} bytes is longer than {MAX_FRAME}")]
    TooLong(usize),
    #[error("a frame is not what was expected: {0}")]
    Malformed(#[from] serde_json::Error),
}

/// One message as a frame.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, message)?;
    let length = frame.len() - 4;
    if length > MAX_FRAME {
        return Err(FrameError::TooLong(length));
    }
    let prefix = u32::try_from(length).map_err(|_| FrameError::TooLong(length))?.to_le_bytes();
    for (slot, byte) in frame.iter_mut().zip(prefix) {
        *slot = byte;
    }
    Ok(frame)
}

/// Takes the next whole frame from the front of `buffer`; `None` while it is not all there.
pub fn decode<T: for<'a> Deserialize<'a>>(buffer: &mut Vec<u8>) -> Result<Option<T>, FrameError> {
    let Some((prefix, rest)) = buffer.split_first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_le_bytes(*prefix) as usize;
    if length > MAX_FRAME {
        return Err(FrameError::TooLong(length));
    }
    let Some(body) = rest.get(..length) else { return Ok(None) };
    let message = serde_json::from_slice(body)?;
    buffer.drain(..4 + length);
    Ok(Some(message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_killed_process_has_the_code_runtimes_give_it() {
        assert_eq!(Exit::Signal(9).code(), 137);
        assert_eq!(Exit::Code(3).code(), 3);
    }

    #[test]
    fn a_frame_that_claims_too_much_is_refused_before_it_is_read() {
        let mut buffer = u32::MAX.to_le_bytes().to_vec();
        assert!(matches!(decode::<Request>(&mut buffer), Err(FrameError::TooLong(_))));
    }

    proptest! {
        #[test]
        fn frames_survive_any_cut(argv in prop::collection::vec(".*", 0..5), cwd in ".*", cut in 0usize..200) {
            let sent = Request::Start(Command { argv, cwd, env: BTreeMap::new() });
            let frame = encode(&sent).unwrap();
            let cut = cut.min(frame.len());
            let mut buffer = frame[..cut].to_vec();
            if cut < frame.len() {
                prop_assert!(decode::<Request>(&mut buffer).unwrap().is_none());
            }
            buffer.extend_from_slice(&frame[cut..]);
            buffer.push(7);
            prop_assert_eq!(decode::<Request>(&mut buffer).unwrap(), Some(sent));
            prop_assert_eq!(buffer, vec![7]);
        }

        #[test]
        fn garbage_never_panics(mut bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = decode::<Notice>(&mut bytes);
        }
    }
}
