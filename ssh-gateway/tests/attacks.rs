//! What OpenSSH would never send, and channels that stall beside others: a client of our own.
#![allow(clippy::unwrap_used)]

mod support;

use std::{sync::Arc, time::Duration};

use russh::{
    Channel, ChannelMsg, Disconnect,
    client::{self, Handle, Msg},
    keys::{PrivateKeyWithHashAlg, PublicKeyOrCertificate, ssh_key},
};
use support::{World, key, token};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

struct Trusting;

impl client::Handler for Trusting {
    type Error = russh::Error;

    async fn check_server_key(&mut self, _: &PublicKeyOrCertificate) -> Result<bool, Self::Error> {
        Ok(true)
    }
}

async fn connect(world: &World) -> Handle<Trusting> {
    let config = Arc::new(client::Config::default());
    client::connect(config, ("127.0.0.1", world.port), Trusting).await.unwrap()
}

async fn signed_in(world: &World) -> Handle<Trusting> {
    let mut client = connect(world).await;
    let answer = client.authenticate_password("lab", token("alice")).await.unwrap();
    assert!(answer.success());
    client
}

/// Sends a line and reads it back.
async fn echo(channel: &mut Channel<Msg>, line: &str) {
    channel.data(line.as_bytes()).await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < line.len() {
        if let Some(ChannelMsg::Data { data }) = channel.wait().await {
            seen.extend_from_slice(&data);
        }
    }
    assert_eq!(seen, line.as_bytes());
}

async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), work).await.expect("a minute")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attack_19_none_unknown_keys_and_certificates_are_refused() {
    let world = World::start().await;
    let mut client = connect(&world).await;
    assert!(!client.authenticate_none("lab").await.unwrap().success());
    let stranger = PrivateKeyWithHashAlg::new(Arc::new(key(8)), None);
    assert!(!client.authenticate_publickey("lab", stranger).await.unwrap().success());
    // Signed by an authority of one's own.
    let authority = key(7);
    let mut builder = ssh_key::certificate::Builder::new_with_random_nonce(
        &mut OneSeed(3),
        key(8).public_key().key_data().clone(),
        0,
        u64::MAX,
    )
    .unwrap();
    builder.cert_type(ssh_key::certificate::CertType::User).unwrap();
    builder.valid_principal("lab").unwrap();
    let certificate = builder.sign(&authority).unwrap();
    let answer = client.authenticate_openssh_cert("lab", Arc::new(key(8)), certificate).await;
    assert!(!answer.unwrap().success());
    // The name may change between attempts; only the last proof and its name count.
    assert!(!client.authenticate_password("lab", "wrong").await.unwrap().success());
    assert!(client.authenticate_password("absent", token("alice")).await.unwrap().success());
    let mut channel = client.channel_open_session().await.unwrap();
    channel.exec(true, "echo hello").await.unwrap();
    let mut said = Vec::new();
    while let Some(message) = within(channel.wait()).await {
        match message {
            ChannelMsg::Data { .. } => panic!("a shell for a workspace that is not there"),
            ChannelMsg::ExtendedData { data, .. } => said.extend_from_slice(&data),
            _ => {}
        }
    }
    assert!(support::text(&said).contains("no workspace \"absent\""));
}

/// Not random: a nonce for a certificate that nobody should accept.
struct OneSeed(u8);

impl ssh_key::rand_core::TryRng for OneSeed {
    type Error = std::convert::Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
        Ok(u32::from(self.0))
    }

    fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
        Ok(u64::from(self.0))
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Self::Error> {
        bytes.fill(self.0);
        Ok(())
    }
}

impl ssh_key::rand_core::TryCryptoRng for OneSeed {}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attack_19_guessing_ends() {
    let world = World::with(|config| config.limits.attempts = 3).await;
    let mut client = connect(&world).await;
    for _ in 0..3 {
        assert!(!client.authenticate_password("lab", "wrong").await.unwrap().success());
    }
    let late = client.authenticate_password("lab", token("alice")).await;
    assert!(!late.is_ok_and(|answer| answer.success()), "even the right token comes too late");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attack_20_nonsense_and_silence_end_and_others_stay_served() {
    let world = World::with(|config| config.limits.sign_in = Duration::from_millis(500)).await;
    let client = signed_in(&world).await;
    let mut live = client.channel_open_session().await.unwrap();
    live.exec(true, "cat").await.unwrap();
    echo(&mut live, "before\n").await;
    // An oversize packet, a line without end, nonsense instead of a key exchange, and silence.
    let mut oversize = b"SSH-2.0-x\r\n".to_vec();
    oversize.extend_from_slice(&[0x7f, 0xff, 0xff, 0xff, 4]);
    for bytes in
        [oversize, vec![b'x'; 1 << 20], b"SSH-2.0-x\r\n\0\0\0\x0c\x04zzzzzzz".to_vec(), vec![]]
    {
        let mut stream = TcpStream::connect(("127.0.0.1", world.port)).await.unwrap();
        let _ = stream.write_all(&bytes).await;
        // Ends by an error or an end of the stream, and not by our patience.
        let mut answer = Vec::new();
        let _ = within(stream.read_to_end(&mut answer)).await;
    }
    echo(&mut live, "after\n").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attack_20_channel_floods_are_bounded() {
    let world = World::with(|config| config.limits.channels = 4).await;
    let client = signed_in(&world).await;
    let mut open = Vec::new();
    for _ in 0..4 {
        open.push(client.channel_open_session().await.unwrap());
    }
    assert!(client.channel_open_session().await.is_err());
    assert!(client.channel_open_direct_tcpip("localhost", 1, "127.0.0.1", 1).await.is_err());
    // A place comes back when a channel ends.
    open.pop().unwrap().close().await.unwrap();
    within(async {
        while client.channel_open_session().await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_address_cannot_take_all_connections() {
    let world = World::with(|config| config.limits.connections_per_address = 1).await;
    let first = signed_in(&world).await;
    let mut stream = TcpStream::connect(("127.0.0.1", world.port)).await.unwrap();
    let mut answer = Vec::new();
    let _ = within(stream.read_to_end(&mut answer)).await;
    assert!(answer.is_empty(), "closed at once");
    first.disconnect(Disconnect::ByApplication, "", "").await.unwrap();
    within(async {
        while TcpStream::connect(("127.0.0.1", world.port))
            .await
            .unwrap()
            .read(&mut [0; 4])
            .await
            .ok()
            != Some(4)
        {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attack_23_agent_and_x11_forwarding_are_off() {
    let world = World::start().await;
    let client = signed_in(&world).await;
    let mut channel = client.channel_open_session().await.unwrap();
    channel.agent_forward(true).await.unwrap();
    assert!(matches!(within(channel.wait()).await, Some(ChannelMsg::Failure)));
    channel.request_x11(true, false, "MIT-MAGIC-COOKIE-1", "00", 0).await.unwrap();
    assert!(matches!(within(channel.wait()).await, Some(ChannelMsg::Failure)));
    channel.request_subsystem(true, "netconf").await.unwrap();
    assert!(matches!(within(channel.wait()).await, Some(ChannelMsg::Failure)));
    channel.exec(true, "echo ${SSH_AUTH_SOCK:-none} ${DISPLAY:-none}").await.unwrap();
    let mut seen = Vec::new();
    while let Some(message) = within(channel.wait()).await {
        if let ChannelMsg::Data { data } = message {
            seen.extend_from_slice(&data);
        }
    }
    assert_eq!(support::text(&seen), "none none\n");
}

/// Uploads that nobody reads fill the buffers on their way; up to that bound siblings do not notice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_nobody_reads_leaves_its_siblings_alone() {
    let world = World::start().await;
    let client = signed_in(&world).await;
    let stalled = client.channel_open_session().await.unwrap();
    let mut live = client.channel_open_session().await.unwrap();
    live.exec(true, "cat").await.unwrap();
    echo(&mut live, "before\n").await;
    stalled.exec(true, "sleep 1000").await.unwrap();
    // Half of the gateway's buffer, with the agent's beside.
    within(stalled.data_bytes(vec![0; ssh_gateway::queue::LIMIT / 2])).await.unwrap();
    for round in 0..50 {
        within(echo(&mut live, &format!("round {round}\n"))).await;
    }
    // It is only slow and not dead.
    stalled.close().await.unwrap();
}
