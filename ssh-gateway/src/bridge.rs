//! Carries one channel between the client and the agent, both ways, in the channel's own task.

use std::{
    pin::pin,
    time::{Duration, Instant},
};

use domain::credit::{self, FIRST_UP, UNIT};
use russh::{Channel, ChannelMsg, ChannelReadHalf, ChannelWriteHalf, Sig, client, server};
use tokio::sync::Semaphore;

use crate::{
    budget::Budget,
    pace::Pace,
    queue::{self, Receiver, Reserved, Sender},
};

/// How long the agent may take to use up what the client sent before it closed the channel.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// How one side of a channel ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The program ended and said how, and the agent closed the channel.
    Finished,
    /// The agent closed the channel: a forwarded connection has ended, or the agent stops.
    Closed,
    /// The connection broke.
    Lost,
}

/// What waits for the client in one channel.
pub struct Outbound {
    sender: Sender,
    receiver: Receiver,
    /// None with an agent that knows no credit.
    pace: Option<Pace>,
}

impl Outbound {
    pub fn new(budget: &Budget, paced: bool, terminal: bool) -> Self {
        let (limit, most) = if terminal {
            (queue::TERMINAL_LIMIT, crate::pace::MOST_TERMINAL)
        } else {
            (queue::LIMIT, crate::pace::MOST)
        };
        let pace = paced.then(|| Pace::new(budget.clone(), most, Instant::now()));
        let reserved = pace.as_ref().map_or_else(Reserved::default, Pace::reserved);
        let (sender, receiver) = queue::queue(budget.clone(), Some(limit), reserved);
        Self { sender, receiver, pace }
    }
}

/// What may still be sent to the agent on one channel.
struct Credit(Option<Semaphore>);

impl Credit {
    /// Waits for what the message needs.
    async fn spend(&self, message: &ChannelMsg) {
        let bytes = length(message).min(FIRST_UP as usize);
        if let Some(left) = &self.0
            && let Ok(spent) = left.acquire_many(bytes as u32).await
        {
            spent.forget();
        }
    }

    /// True for what is no credit.
    fn receive(&self, message: &ChannelMsg) -> bool {
        let ChannelMsg::XonXoff { client_can_do } = message else { return true };
        if let Some(left) = &self.0
            && *client_can_do
            && left.available_permits() < FIRST_UP as usize
        {
            left.add_permits(UNIT as usize);
        }
        false
    }
}

fn length(message: &ChannelMsg) -> usize {
    match message {
        ChannelMsg::Data { data } | ChannelMsg::ExtendedData { data, .. } => data.len(),
        _ => 0,
    }
}

/// The client's side of a channel.
pub struct ToClient<'a> {
    pub write: &'a ChannelWriteHalf<server::Msg>,
    pub handle: &'a server::Handle,
}

/// Empties a channel into its queue until the channel is closed, and says how it ended. `keep` is
/// shown each message first, and says whether it goes on.
pub async fn fill(
    read: &mut ChannelReadHalf,
    queue: Sender,
    mut keep: impl FnMut(&ChannelMsg) -> bool,
) -> Ended {
    while let Some(message) = read.wait().await {
        if matches!(message, ChannelMsg::Close) {
            return Ended::Closed;
        }
        if keep(&message) {
            // With nobody left to read them, messages are still taken off the connection.
            let _ = queue.push(message).await;
        }
    }
    Ended::Lost
}

/// Runs `carry` beside the client's `fill`. When the client closes the channel, what it sent before
/// is still delivered; `None` then, as nobody is left to be told.
pub async fn beside<T>(
    fill: impl Future<Output = Ended>,
    carry: impl Future<Output = T>,
) -> Option<T> {
    let mut carry = pin!(carry);
    tokio::select! {
        done = carry.as_mut() => Some(done),
        _ = fill => {
            let _ = tokio::time::timeout(LAST_WORDS, carry).await;
            None
        }
    }
}

/// Carries until the agent's side ends. `from_client` is the other end of [`fill`]; when it ends the
/// agent's channel is closed.
pub async fn carry(
    mut from_client: Receiver,
    client: ToClient<'_>,
    agent: Channel<client::Msg>,
    outbound: Outbound,
) -> Ended {
    let (mut read, write) = agent.split();
    let Outbound { sender, receiver: mut from_agent, mut pace } = outbound;
    let credit = Credit(pace.is_some().then(|| Semaphore::new(FIRST_UP as usize)));
    let up = async {
        while let Some(message) = from_client.pop().await {
            credit.spend(&message).await;
            if to_agent(&write, message).await.is_err() {
                // The connection is gone, and `down` says so.
                return std::future::pending().await;
            }
        }
        // The library forgets a channel that it closes first, so no answer is waited for.
        let _ = write.close().await;
        Ended::Closed
    };
    let mut finished = false;
    let keep = |message: &ChannelMsg| {
        finished |=
            matches!(message, ChannelMsg::ExitStatus { .. } | ChannelMsg::ExitSignal { .. });
        credit.receive(message)
    };
    let down = async {
        let drain = async {
            while let Some(message) = from_agent.pop().await {
                let bytes = length(&message);
                if to_client(&client, message).await.is_err() {
                    return;
                }
                let more = pace.as_mut().and_then(|pace| pace.taken(bytes, Instant::now()));
                if let Some(more) = more {
                    let _ = write.signal(Sig::Custom(credit::signal(more))).await;
                }
            }
        };
        tokio::join!(fill(&mut read, sender, keep), drain).0
    };
    let ended = tokio::select! {
        ended = down => ended,
        ended = up => ended,
    };
    if finished && ended == Ended::Closed { Ended::Finished } else { ended }
}

async fn to_agent(
    write: &ChannelWriteHalf<client::Msg>,
    message: ChannelMsg,
) -> Result<(), russh::Error> {
    match message {
        ChannelMsg::Data { data } => write.data_bytes(data).await,
        ChannelMsg::ExtendedData { data, ext } => write.extended_data_bytes(ext, data).await,
        ChannelMsg::Eof => write.eof().await,
        ChannelMsg::WindowChange { col_width, row_height, pix_width, pix_height } => {
            write.window_change(col_width, row_height, pix_width, pix_height).await
        }
        // What has our name for credit is nobody's signal.
        ChannelMsg::Signal { signal: Sig::Custom(name) } if credit::given_by(&name).is_some() => {
            Ok(())
        }
        ChannelMsg::Signal { signal } => write.signal(signal).await,
        _ => Ok(()),
    }
}

/// The client is gone.
struct Gone;

async fn to_client(client: &ToClient<'_>, message: ChannelMsg) -> Result<(), Gone> {
    let (write, handle) = (client.write, client.handle);
    let id = write.id();
    match message {
        ChannelMsg::Data { data } => write.data_bytes(data).await.map_err(|_| Gone),
        ChannelMsg::ExtendedData { data, ext } => {
            write.extended_data_bytes(ext, data).await.map_err(|_| Gone)
        }
        ChannelMsg::Eof => write.eof().await.map_err(|_| Gone),
        ChannelMsg::Success => handle.channel_success(id).await.map_err(|()| Gone),
        ChannelMsg::Failure => handle.channel_failure(id).await.map_err(|()| Gone),
        ChannelMsg::ExitStatus { exit_status } => {
            write.exit_status(exit_status).await.map_err(|_| Gone)
        }
        ChannelMsg::ExitSignal { signal_name, core_dumped, error_message, lang_tag } => handle
            .exit_signal_request(id, signal_name, core_dumped, error_message, lang_tag)
            .await
            .map_err(|()| Gone),
        _ => Ok(()),
    }
}
