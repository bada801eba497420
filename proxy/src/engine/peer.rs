//! A picked upstream in pingora's terms.

use std::time::Duration;

use domain::upstream::{UpstreamProtocol, Verification};
use pingora::{
    protocols::TcpKeepalive,
    upstreams::peer::{HttpPeer, HttpUpstreamRequestPolicy},
};

use crate::{
    tcp,
    upstream::{
        CONNECT_TIMEOUT, POOL_IDLE, Picked,
        tls::{self, TlsError, TlsSettings},
    },
};

/// Requests at a time on one connection to a pod.
const H2_STREAMS: usize = 100;
/// A pod that answers no ping is gone, however many streams are open on its connection.
const H2_PING: Duration = Duration::from_secs(20);
/// What a pod may send ahead on one stream and on one connection.
const H2_WINDOW: u32 = 1 << 20;
const H2_CONNECTION_WINDOW: u32 = 4 << 20;

pub fn of(
    picked: &Picked,
    settings: &TlsSettings,
    stall_timeout: Duration,
) -> Result<HttpPeer, TlsError> {
    let mut peer = match &picked.protocol {
        UpstreamProtocol::Http1 => HttpPeer::new(picked.address, false, String::new()),
        UpstreamProtocol::H2c => {
            let mut peer = HttpPeer::new(picked.address, false, String::new());
            peer.options.set_http_version(2, 2);
            peer
        }
        UpstreamProtocol::Tls(tls) => {
            // Without a name pingora would check nothing.
            tls::server_name(tls)?;
            let mut peer = HttpPeer::new(picked.address, true, tls.server_name.clone());
            peer.options.set_http_version(2, 1);
            let verify = tls.verification != Verification::Skip;
            peer.options.verify_cert = verify;
            peer.options.verify_hostname = verify;
            peer.options.ca = settings.authorities(picked.pool, tls)?;
            peer
        }
    };
    peer.group_key = picked.pool;
    let options = &mut peer.options;
    if picked.protocol != UpstreamProtocol::Http1 {
        options.max_h2_streams = H2_STREAMS;
        options.h2_ping_interval = Some(H2_PING);
        options.h2_stream_window_size = Some(H2_WINDOW);
        options.h2_connection_window_size = Some(H2_CONNECTION_WINDOW);
    }
    options.connection_timeout = Some(CONNECT_TIMEOUT);
    options.total_connection_timeout = Some(CONNECT_TIMEOUT);
    options.idle_timeout = Some(POOL_IDLE);
    options.tcp_keepalive = Some(TcpKeepalive {
        idle: tcp::keepalive_idle(),
        interval: tcp::KEEPALIVE_INTERVAL,
        count: tcp::KEEPALIVE_COUNT,
        user_timeout: Duration::ZERO,
    });
    // An answer may take hours; how long is the workload's business.
    options.read_timeout = None;
    options.write_timeout = Some(stall_timeout);
    // The scrubbing of the gate decides, the same for every engine.
    let mut policy = HttpUpstreamRequestPolicy::deny_upgrades();
    policy.strip_connection_nominated = false;
    options.http_upstream_request_policy = policy;
    Ok(peer)
}
