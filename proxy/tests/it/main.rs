//! The whole service over loopback, with real TLS, a stand-in issuer and real upstreams.
#![allow(clippy::unwrap_used)]
// What the two engines must do alike is compiled twice.
#![allow(clippy::duplicate_mod)]

mod acme;
mod apps;
mod cross_origin;
mod engines;
mod exchanges;
mod expiry;
mod forwarding;
mod front;
mod http2;
mod http2_attacks;
mod http2_streams;
mod interim;
mod issuer;
mod judged;
mod limits;
mod never_read;
mod operations;
mod pebble;
mod pki;
mod pods;
mod protocols;
mod redirect;
mod renewed;
mod scale;
mod sign_in;
mod strictness;
mod tls;
mod upstream;
mod waking;
mod websocket;
mod websocket_cases;
mod world;

/// The same without the fast lane: `World` tells by the name of the test.
#[path = "."]
mod general {
    #[path = "apps.rs"]
    mod apps;
    #[path = "cross_origin.rs"]
    mod cross_origin;
    #[path = "exchanges.rs"]
    mod exchanges;
    #[path = "forwarding.rs"]
    mod forwarding;
    #[path = "front.rs"]
    mod front;
    #[path = "interim.rs"]
    mod interim;
    #[path = "judged.rs"]
    mod judged;
    #[path = "waking.rs"]
    mod waking;
}
