//! Whole sessions, as bytes.

use std::{ffi::OsString, os::unix::ffi::OsStringExt};

use proptest::{collection::vec, prelude::*};

use super::*;

/// What a client sends: requests with their lengths, one after the other.
#[derive(Default)]
struct Sent(Vec<u8>);

impl Sent {
    fn packet(mut self, kind: u8, fields: &[&[u8]]) -> Self {
        let length: usize = fields.iter().map(|field| field.len()).sum();
        self.0.extend_from_slice(&(length as u32 + 1).to_be_bytes());
        self.0.push(kind);
        for field in fields {
            self.0.extend_from_slice(field);
        }
        self
    }
}

fn string(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u32).to_be_bytes(), bytes].concat()
}

const ID: [u8; 4] = [0, 0, 0, 9];
const NOTHING: [u8; 4] = [0; 4];

/// Runs a session to its end and returns its answers: type and body, each.
async fn answers(home: &std::path::Path, sent: Sent) -> Vec<(u8, Vec<u8>)> {
    let (sender, receiver) = queue::queue();
    sender.push(sent.0.into()).await.unwrap();
    drop(sender);
    let mut stream = Vec::new();
    let send = |bytes: Bytes| {
        stream.extend_from_slice(&bytes);
        std::future::ready(Ok(()))
    };
    serve(receiver, send, home.to_owned()).await;
    let mut found = Vec::new();
    let mut rest = &stream[..];
    while let Some((head, tail)) = rest.split_first_chunk::<4>() {
        let (body, tail) = tail.split_at(u32::from_be_bytes(*head) as usize);
        found.push((body[0], body[1..].to_vec()));
        rest = tail;
    }
    found
}

fn status_code(answer: &(u8, Vec<u8>)) -> (u8, u8) {
    (answer.0, answer.1[7])
}

#[tokio::test]
async fn a_name_that_is_not_utf8_is_made_listed_read_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (string(b"caf\xe8"), string(b"caf\xe9"));
    let flags = 0x1au32.to_be_bytes();
    let open = |name: &Vec<u8>| vec![ID.to_vec(), name.clone(), flags.to_vec(), NOTHING.to_vec()];
    let as_slices = |fields: &[Vec<u8>]| fields.iter().map(Vec::clone).collect::<Vec<_>>();
    let mut sent = Sent::default().packet(1, &[&3u32.to_be_bytes()]);
    for name in [&one, &two] {
        let fields = as_slices(&open(name));
        sent = sent.packet(3, &fields.iter().map(Vec::as_slice).collect::<Vec<_>>());
    }
    // The third handle is the listing's.
    sent = sent
        .packet(11, &[&ID, &string(b".")])
        .packet(12, &[&ID, &string(&2u32.to_be_bytes())])
        .packet(16, &[&ID, &two])
        .packet(20, &[&ID, &one, &string(b"link\xff")])
        .packet(19, &[&ID, &string(b"link\xff")])
        .packet(13, &[&ID, &two]);
    let found = answers(dir.path(), sent).await;
    let kinds: Vec<u8> = found.iter().map(|(kind, _)| *kind).collect();
    assert_eq!(kinds, [2, 102, 102, 102, 104, 104, 101, 104, 101]);
    let has = |body: &[u8], name: &[u8]| body.windows(name.len()).any(|window| window == name);
    for name in [&one, &two] {
        assert!(has(&found[4].1, name), "listed as it is");
    }
    assert!(has(&found[5].1, b"/caf\xe9"), "a real path");
    assert!(has(&found[7].1, &one), "a link's target");
    assert_eq!(status_code(&found[8]), (101, 0));
    let left = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
    let mut left: Vec<OsString> = left.collect();
    left.sort();
    assert_eq!(left, [b"caf\xe8".to_vec(), b"link\xff".to_vec()].map(OsString::from_vec));
}

#[tokio::test]
async fn what_is_cut_short_or_unknown_is_answered_and_the_session_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let sent = Sent::default()
        .packet(7, &[&ID, &100u32.to_be_bytes(), b"short"])
        .packet(77, &[&ID])
        .packet(200, &[&ID, &string(b"nobody@example.org")])
        .packet(200, &[&ID, &string(b"fsync@openssh.com")])
        .packet(5, &[&ID, &string(b"no handle"), &[0; 12]])
        .packet(17, &[&ID, &string(b"nul\0")])
        .packet(17, &[&ID, &string(b"absent")])
        .packet(17, &[&ID, &string(b"")]);
    let found = answers(dir.path(), sent).await;
    let codes: Vec<_> = found[..7].iter().map(status_code).collect();
    let code = |code: Code| (101, code as u8);
    assert_eq!(
        codes,
        [
            code(Code::BadMessage),
            code(Code::Unsupported),
            code(Code::Unsupported),
            code(Code::BadMessage),
            code(Code::Failure),
            code(Code::Failure),
            code(Code::NoSuchFile),
        ]
    );
    assert_eq!(found[7].0, 105, "an empty path is the home");
}

#[tokio::test]
async fn a_packet_that_cannot_be_ends_the_session() {
    let dir = tempfile::tempdir().unwrap();
    let mut sent = Sent::default().packet(17, &[&ID, &string(b".")]);
    sent.0.extend_from_slice(&[0xff; 40]);
    let sent = sent.packet(17, &[&ID, &string(b".")]);
    assert_eq!(answers(dir.path(), sent).await.len(), 1);
}

#[tokio::test]
async fn handles_and_open_files_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let mut sent = Sent::default();
    for _ in 0..=OPEN_MAX {
        sent = sent.packet(11, &[&ID, &string(b".")]);
    }
    let found = answers(dir.path(), sent).await;
    assert!(found[..OPEN_MAX].iter().all(|(kind, _)| *kind == 102));
    assert_eq!(status_code(&found[OPEN_MAX]), (101, Code::Failure as u8));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Every packet with a request id has one answer, whatever is in it. Of the requests, only those
    /// that change nothing outside of the session: names are made up.
    #[test]
    fn every_request_has_one_answer(
        bodies in vec((prop::sample::select(vec![4u8, 5, 7, 8, 12, 16, 17, 19, 42, 250]), vec(any::<u8>(), 4..60)), 0..20),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let count = bodies.len();
        let sent = bodies.iter().fold(Sent::default(), |sent, (kind, body)| sent.packet(*kind, &[body]));
        let found = runtime.block_on(answers(dir.path(), sent));
        prop_assert_eq!(found.len(), count);
    }
}

proptest! {
    #[test]
    fn packets_are_the_same_in_whatever_parts_they_come(mut bytes in vec(any::<u8>(), 0..600)) {
        // Lengths that are mostly possible.
        for place in (0..bytes.len()).step_by(40) {
            let end = bytes.len().min(place + 3);
            bytes[place..end].fill(0);
        }
        read_apart(&bytes);
    }
}
