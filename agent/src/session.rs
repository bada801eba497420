//! One session channel: a shell, a command, or file transfer (RFC 4254, section 6).
//!
//! The connection's handler answers requests; here they are carried out, in one task per channel.

use std::{
    io, os::unix::process::ExitStatusExt, path::PathBuf, pin::pin, process::ExitStatus, sync::Arc,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use russh::{
    Channel, ChannelId, ChannelMsg, ChannelReadHalf, ChannelWriteHalf,
    server::{Handle, Msg},
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

use crate::{
    gateway::{Credit, Gateway, Output},
    login::{Login, may_set},
    process::{self, Pipes, Program},
    pty::{self, Master, Size},
    queue, sftp,
};

/// How much is read from a program at once, in bytes.
const CHUNK: usize = 32 << 10;

/// Most variables that a client may set.
const VARIABLES_MAX: usize = 32;

/// How long the rest of a program's output may take before its status is told without it.
const LAST_OUTPUT: Duration = Duration::from_secs(1);

/// The code of a session whose program could not be started.
const CANNOT_START: u32 = 127;

pub const SFTP: &str = "sftp";

#[derive(Default)]
struct Setup {
    terminal: Option<pty::Request>,
    variables: Vec<(String, String)>,
}

enum Start {
    Shell,
    Exec(Vec<u8>),
    Sftp,
}

enum End {
    Exited(ExitStatus),
    /// Of file transfer.
    Done,
    Failed(String),
    /// The program ended, and the client knows how.
    Told,
    /// The client closed the channel or is gone: there is nobody to tell.
    HungUp,
}

/// Ends when the program or the channel does, or when the agent stops.
pub async fn run(
    login: Arc<Login>,
    channel: Channel<Msg>,
    gateway: Gateway,
    stop: CancellationToken,
) {
    let (read, write) = channel.split();
    let credit = gateway.credit();
    let mut input = Input { id: write.id(), read, credit: &credit, gateway: &gateway };
    let output = Output { write: &write, credit: &credit };
    let work = async {
        match prepare(&mut input.read).await {
            Some((setup, start)) => serve(&login, setup, start, &mut input, output).await,
            None => End::HungUp,
        }
    };
    let end = tokio::select! {
        end = work => end,
        () = stop.cancelled() => End::HungUp,
    };
    finish(&gateway.handle, &write, end).await;
}

async fn prepare(read: &mut ChannelReadHalf) -> Option<(Setup, Start)> {
    let mut setup = Setup::default();
    loop {
        match read.wait().await? {
            ChannelMsg::RequestPty {
                term,
                col_width,
                row_height,
                pix_width,
                pix_height,
                terminal_modes,
                ..
            } => {
                let size = Size {
                    columns: col_width,
                    rows: row_height,
                    width: pix_width,
                    height: pix_height,
                };
                setup.terminal = Some(pty::Request { term, size, modes: terminal_modes });
            }
            ChannelMsg::WindowChange { col_width, row_height, pix_width, pix_height } => {
                if let Some(terminal) = &mut setup.terminal {
                    terminal.size = Size {
                        columns: col_width,
                        rows: row_height,
                        width: pix_width,
                        height: pix_height,
                    };
                }
            }
            ChannelMsg::SetEnv { variable_name, variable_value, .. }
                if may_set(&variable_name) && setup.variables.len() < VARIABLES_MAX =>
            {
                setup.variables.push((variable_name, variable_value));
            }
            ChannelMsg::RequestShell { .. } => return Some((setup, Start::Shell)),
            ChannelMsg::Exec { command, .. } => return Some((setup, Start::Exec(command))),
            ChannelMsg::RequestSubsystem { name, .. } if name == SFTP => {
                return Some((setup, Start::Sftp));
            }
            ChannelMsg::Close => return None,
            _ => {}
        }
    }
}

async fn serve(
    login: &Login,
    setup: Setup,
    start: Start,
    input: &mut Input<'_>,
    output: Output<'_>,
) -> End {
    let mut command = match start {
        Start::Shell => login.shell(),
        Start::Exec(line) => login.exec(&line),
        Start::Sftp => return transfer(login.home().to_owned(), input, output).await,
    };
    command.envs(setup.variables);
    let started = match &setup.terminal {
        Some(request) => process::with_terminal(command, request).map(Running::Terminal),
        None => process::with_pipes(command).map(Running::Pipes),
    };
    match started {
        Ok(Running::Terminal((program, master))) => terminal(program, &master, input, output).await,
        Ok(Running::Pipes((program, pipes))) => piped(program, pipes, input, output).await,
        Err(error) => End::Failed(format!("cannot start the shell: {error}")),
    }
}

enum Running {
    Terminal((Program, Master)),
    Pipes((Program, Pipes)),
}

async fn terminal(
    mut program: Program,
    master: &Master,
    input: &mut Input<'_>,
    output: Output<'_>,
) -> End {
    let group = program.group();
    let (sender, mut receiver) = queue::queue();
    let exited = CancellationToken::new();
    let output = terminal_output(master, output, &exited);
    let wait = async {
        let status = program.wait().await;
        exited.cancel();
        status
    };
    let feed = async {
        while let Some(bytes) = receiver.pop().await {
            let mut left = &bytes[..];
            while !left.is_empty() {
                match master.write(left).await {
                    Ok(written) => left = left.get(written..).unwrap_or_default(),
                    Err(_) => return,
                }
            }
        }
    };
    let input = input.take(sender, |message| match message {
        ChannelMsg::WindowChange { col_width, row_height, pix_width, pix_height } => {
            let (columns, rows, width, height) = (col_width, row_height, pix_width, pix_height);
            master.resize(Size { columns, rows, width, height });
        }
        other => deliver(group, &other),
    });
    tokio::select! {
        ((), status) = async { tokio::join!(output, wait) } => ended(status),
        () = input => End::HungUp,
        () = forever(feed) => End::HungUp,
    }
}

/// Until the other end is closed, or the program has ended and all that it wrote is read: something
/// that it left in the background may hold the terminal open.
async fn terminal_output(master: &Master, output: Output<'_>, exited: &CancellationToken) {
    let mut buffer = vec![0; CHUNK];
    loop {
        let read = tokio::select! {
            biased;
            read = master.read(&mut buffer) => read.unwrap_or(0),
            () = exited.cancelled() => master.try_read(&mut buffer).unwrap_or(0),
        };
        let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else { return };
        if output.send(Bytes::copy_from_slice(bytes), None).await.is_err() {
            return;
        }
    }
}

async fn piped(
    mut program: Program,
    pipes: Pipes,
    input: &mut Input<'_>,
    output: Output<'_>,
) -> End {
    let (handle, write) = (&input.gateway.handle, output.write);
    let group = program.group();
    let (sender, receiver) = queue::queue();
    let taking = input.take(sender, |message| deliver(group, &message));
    let work = async {
        let mut outputs = pin!(async {
            let _ = tokio::join!(
                copy_out(pipes.stdout, output, None),
                copy_out(pipes.stderr, output, Some(1)),
            );
        });
        let mut read_out = false;
        let status = loop {
            tokio::select! {
                status = program.wait() => break status,
                () = &mut outputs, if !read_out => read_out = true,
            }
        };
        // Something that the program left in the background may hold its outputs open.
        if !read_out {
            read_out = tokio::time::timeout(LAST_OUTPUT, &mut outputs).await.is_ok();
        }
        tell(handle, write, ended(status)).await;
        if !read_out {
            outputs.await;
        }
    };
    tokio::select! {
        () = work => End::Told,
        () = taking => End::HungUp,
        () = forever(feed(receiver, pipes.stdin)) => End::HungUp,
    }
}

async fn transfer(home: PathBuf, input: &mut Input<'_>, output: Output<'_>) -> End {
    let (sender, receiver) = queue::queue();
    let send = |bytes| async move { output.send(bytes, None).await.map_err(io::Error::other) };
    tokio::select! {
        () = sftp::serve(receiver, send, home) => End::Done,
        () = input.take(sender, |_| ()) => End::HungUp,
    }
}

/// What comes from the gateway.
struct Input<'a> {
    id: ChannelId,
    read: ChannelReadHalf,
    credit: &'a Credit,
    gateway: &'a Gateway,
}

impl Input<'_> {
    /// Ends when the channel is closed, and not at the end of the input.
    async fn take(&mut self, sender: queue::Sender, mut request: impl FnMut(ChannelMsg)) {
        let giving = self.gateway.give(self.id, sender.popped());
        let taking = fill(&mut self.read, sender, |message| {
            self.credit.receive(&message);
            request(message);
        });
        tokio::select! {
            () = taking => {}
            () = giving => {}
        }
    }
}

/// Empties a channel into its queue until the channel is closed; `other` is shown what is no data.
pub async fn fill(
    read: &mut ChannelReadHalf,
    sender: queue::Sender,
    mut other: impl FnMut(ChannelMsg),
) {
    let mut sender = Some(sender);
    while let Some(message) = read.wait().await {
        match message {
            ChannelMsg::Data { data } => {
                if let Some(open) = &sender
                    && open.push(data).await.is_err()
                {
                    sender = None;
                }
            }
            ChannelMsg::Eof => sender = None,
            ChannelMsg::Close => return,
            message => other(message),
        }
    }
}

fn deliver(group: Option<nix::unistd::Pid>, message: &ChannelMsg) {
    if let ChannelMsg::Signal { signal } = message
        && let (Some(group), Some(signal)) = (group, process::signal(signal))
    {
        let _ = nix::sys::signal::killpg(group, signal);
    }
}

/// Writes what arrives, then closes the writer.
pub async fn feed(mut receiver: queue::Receiver, mut writer: impl AsyncWrite + Unpin) {
    while let Some(bytes) = receiver.pop().await {
        if writer.write_all(&bytes).await.is_err() {
            return;
        }
    }
    let _ = writer.shutdown().await;
}

/// `extended` as in [`Output::send`].
pub async fn copy_out(
    mut reader: impl AsyncRead + Unpin,
    output: Output<'_>,
    extended: Option<u32>,
) -> io::Result<()> {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(CHUNK);
        if reader.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
        let bytes = buffer.split().freeze();
        output.send(bytes, extended).await.map_err(io::Error::other)?;
    }
}

/// For a branch of a select whose end is nobody's end.
pub async fn forever(work: impl Future<Output = ()>) {
    work.await;
    std::future::pending().await
}

fn ended(status: io::Result<ExitStatus>) -> End {
    match status {
        Ok(status) => End::Exited(status),
        Err(error) => End::Failed(format!("cannot wait for the program: {error}")),
    }
}

/// Says how the program ended. Always before the end of its output: a client that has that answers
/// with its own close, and what comes after is for nobody.
async fn tell(handle: &Handle, write: &ChannelWriteHalf<Msg>, end: End) {
    // Errors mean that the connection is gone.
    match end {
        End::Exited(status) => {
            if let Some(signal) = status.signal() {
                let (id, name, core) = (write.id(), process::name(signal), status.core_dumped());
                let told = handle.exit_signal_request(id, name, core, String::new(), String::new());
                let _ = told.await;
            } else {
                let code = status.code().and_then(|code| u32::try_from(code).ok());
                let _ = write.exit_status(code.unwrap_or(CANNOT_START)).await;
            }
        }
        End::Done => {
            let _ = write.exit_status(0).await;
        }
        End::Failed(reason) => {
            let line = format!("dormouse: {reason}\r\n");
            let _ = write.extended_data_bytes(1, line.into_bytes()).await;
            let _ = write.exit_status(CANNOT_START).await;
        }
        End::Told | End::HungUp => {}
    }
}

async fn finish(handle: &Handle, write: &ChannelWriteHalf<Msg>, end: End) {
    if !matches!(end, End::HungUp) {
        tell(handle, write, end).await;
        let _ = write.eof().await;
    }
    let _ = write.close().await;
}
