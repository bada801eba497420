//! One session channel of a client: a shell, a command or a subsystem.

use std::sync::Arc;

use domain::{
    activity::{Guard, How},
    variables,
};
use jiff::Timestamp;
use runtime::audit::Outcome;
use russh::{Channel, ChannelMsg, ChannelReadHalf, client, server};

use crate::{
    bridge::{self, Ended, Outbound, ToClient},
    link::Opened,
    refusal::{Refusal, Shown},
    visit::{Ends, Visit},
    wake::Teller,
};

/// OpenSSH's own code for "the connection failed".
const FAILED: u32 = 255;

/// Most variables of a client that are looked at.
const VARIABLES_MAX: usize = 32;

const SFTP: &str = "sftp";

/// What the client asked for before the program starts.
#[derive(Default)]
struct Setup {
    terminal: Option<Terminal>,
    variables: Vec<(String, String)>,
    /// Names that are not passed on.
    left_out: Vec<String>,
}

impl Setup {
    fn variable(&mut self, name: String, value: String) {
        if self.variables.len() + self.left_out.len() >= VARIABLES_MAX {
            return;
        }
        if variables::passes(&name) {
            self.variables.push((name, value));
        } else {
            self.left_out.push(name);
        }
    }
}

struct Terminal {
    term: String,
    /// Columns, rows, and the same in pixels.
    size: [u32; 4],
    modes: Vec<(russh::Pty, u32)>,
}

enum Start {
    Shell,
    Exec(Vec<u8>),
    Subsystem(String),
}

impl Start {
    fn doing(&self) -> &'static str {
        match self {
            Self::Shell => "opened a shell",
            Self::Exec(_) => "ran a command",
            Self::Subsystem(_) => "transferred files",
        }
    }

    /// What it is a person's doing to send data to it.
    fn sending(&self) -> &'static str {
        match self {
            Self::Subsystem(_) => "transferred files",
            _ => "typed in a shell",
        }
    }
}

/// Ends when the program or the channel does.
pub async fn run(visit: Arc<Visit>, channel: Channel<server::Msg>) {
    let (mut read, write) = channel.split();
    let Some((setup, start)) = prepare(&mut read).await else {
        let _ = write.close().await;
        return;
    };
    let teller = Teller { write: &write, raw: setup.terminal.is_some() };
    say_what_is_left_out(&setup, &start, teller).await;
    let ended = tokio::select! {
        ended = serve(&visit, setup, &start, &mut read, teller) => ended,
        () = visit.lost.cancelled() => Some(Err(visit.loss())),
    };
    let outcome = if matches!(ended, Some(Err(_))) { "failed" } else { "opened" };
    visit.gate.metrics.channels.with_label_values(&["session", outcome]).inc();
    if let Some(Err(refusal)) = ended {
        teller.say(&refusal.to_string()).await;
        let _ = write.exit_status(FAILED).await;
        let _ = write.eof().await;
    }
    let _ = write.close().await;
    visit.tidy().await;
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
                let size = [col_width, row_height, pix_width, pix_height];
                setup.terminal = Some(Terminal { term, size, modes: terminal_modes });
            }
            ChannelMsg::WindowChange { col_width, row_height, pix_width, pix_height } => {
                if let Some(terminal) = &mut setup.terminal {
                    terminal.size = [col_width, row_height, pix_width, pix_height];
                }
            }
            ChannelMsg::SetEnv { variable_name, variable_value, .. } => {
                setup.variable(variable_name, variable_value);
            }
            ChannelMsg::RequestShell { .. } => return Some((setup, Start::Shell)),
            ChannelMsg::Exec { command, .. } => return Some((setup, Start::Exec(command))),
            // Others were refused already, where requests are answered.
            ChannelMsg::RequestSubsystem { name, .. } if name == SFTP => {
                return Some((setup, Start::Subsystem(name)));
            }
            ChannelMsg::Close => return None,
            _ => {}
        }
    }
}

/// On a terminal only: elsewhere a program may read what comes with its answer.
async fn say_what_is_left_out(setup: &Setup, start: &Start, teller: Teller<'_>) {
    if setup.left_out.is_empty() {
        return;
    }
    let names = Shown::plain(&setup.left_out.join(", "));
    tracing::info!(%names, "variables of a client are not passed on");
    if setup.terminal.is_some() && !matches!(start, Start::Subsystem(_)) {
        let listed = variables::LISTED;
        teller.say(&format!("not passed on: {names}; the variables that are: {listed}")).await;
    }
}

/// Only file transfer is offered as a subsystem.
pub fn is_offered(subsystem: &str) -> bool {
    subsystem == SFTP
}

/// `None` when the client left first.
async fn serve(
    visit: &Arc<Visit>,
    setup: Setup,
    start: &Start,
    read: &mut ChannelReadHalf,
    teller: Teller<'_>,
) -> Option<Result<(), Refusal>> {
    let grant = match visit.known().await {
        Ok(grant) => grant,
        Err(refusal) => {
            visit.record("refused", Outcome::Denied, Some("no such workspace for this person"));
            return Some(Err(refusal));
        }
    };
    let guard = grant.begin(How::Ssh);
    guard.person(start.doing(), Timestamp::now());
    visit.record("opened", Outcome::Allowed, Some(start.doing()));
    let (sender, receiver) = visit.inbound(teller.write.id());
    let terminal = setup.terminal.is_some();
    let fill = bridge::fill(read, sender, |message| {
        note(&guard, start, message);
        true
    });
    let work = async {
        let Opened { channel, agent } = visit.open_session(Some(teller)).await?;
        let name = grant.workload().name.clone();
        begin(&channel, setup, start, visit.ends)
            .await
            .map_err(|_| Refusal::Disconnected(name.clone()))?;
        let client = ToClient { write: teller.write, handle: &visit.handle };
        let outbound = Outbound::new(&visit.down, agent.is_paced(), terminal);
        let ended = bridge::carry(receiver, client, channel, outbound).await;
        drop(agent);
        match ended {
            Ended::Finished => Ok(()),
            Ended::Closed | Ended::Lost => Err(why_lost(visit).await),
        }
    };
    bridge::beside(fill, work).await
}

/// A person's doing is what is sent to a program, and not a resized window or a keepalive.
fn note(guard: &Guard, start: &Start, message: &ChannelMsg) {
    if matches!(message, ChannelMsg::Data { .. } | ChannelMsg::Signal { .. }) {
        guard.person(start.sending(), Timestamp::now());
    }
}

async fn begin(
    channel: &Channel<client::Msg>,
    setup: Setup,
    start: &Start,
    ends: Ends,
) -> Result<(), russh::Error> {
    // Only the start is answered, and so the first answer is the start's.
    if let Some(Terminal { term, size: [columns, rows, width, height], modes }) = setup.terminal {
        channel.request_pty(false, &term, columns, rows, width, height, &modes).await?;
    }
    for (name, value) in setup.variables.into_iter().chain(ends.variables()) {
        channel.set_env(false, name, value).await?;
    }
    match start {
        Start::Shell => channel.request_shell(true).await,
        Start::Exec(command) => channel.exec(true, command.clone()).await,
        Start::Subsystem(name) => channel.request_subsystem(true, name.clone()).await,
    }
}

/// The pod's end is seen before the news of it: the route is looked at again a moment later.
async fn why_lost(visit: &Visit) -> Refusal {
    use domain::access::Readiness;
    let mut routes = visit.gate.routes.clone();
    let news = routes.changed();
    let _ = tokio::time::timeout(std::time::Duration::from_secs(1), news).await;
    match visit.grant() {
        Err(refusal) => refusal,
        Ok(grant) => {
            let name = grant.workload().name.clone();
            match grant.readiness() {
                Readiness::Asleep => Refusal::FellAsleep(name),
                Readiness::Stopped => Refusal::Stopped(name),
                _ => Refusal::Disconnected(name),
            }
        }
    }
}
