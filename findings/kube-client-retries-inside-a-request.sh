#!/usr/bin/env bash
# kube 5.0.0 (Rust): a client that was made from a Config repeats a request that is answered with 429, 503 or 504 by
# itself, up to 15 times, with pauses that double from 5 ms to at most 1000 s (`Config::default_retry`, true by default).
#
# One would guess that errors reach the caller, and that the watcher's back-off is what paces lists and watches. After a
# restart of an API server (429, "storage is (re)initializing") a list waits for minutes inside one call instead: no
# back-off, log or metric of the caller sees it. `default_retry: false` gives the errors back.
#
# Seen: "default: ok after 11 [2.7, 5.2] (requests, last pauses in s)", "off: 429 after 1 []"; the pauses vary.
# Needs cargo and python3. Fails if the behaviour changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'kill "${server:-}" 2>/dev/null || true; rm -rf "$folder"' EXIT
mkdir "$folder/src"
cat >"$folder/Cargo.toml" <<'TOML'
[package]
name = "finding"
version = "0.0.0"
edition = "2024"
[dependencies]
kube = { version = "=5.0.0", default-features = false, features = ["client"] }
k8s-openapi = { version = "=0.29.0", features = ["v1_33"] }
tokio = { version = "1", features = ["macros", "rt"] }
TOML
cat >"$folder/src/main.rs" <<'RUST'
#[tokio::main(flavor = "current_thread")]
async fn main() {
    let mut args = std::env::args().skip(1);
    let mut config = kube::Config::new(args.next().unwrap().parse().unwrap());
    if args.next().as_deref() == Some("off") {
        config.default_retry = false;
    }
    match kube::Client::try_from(config).unwrap().apiserver_version().await {
        Ok(_) => println!("ok"),
        Err(kube::Error::Api(status)) => println!("{}", status.code),
        Err(error) => println!("{error}"),
    }
}
RUST
# Answers 429 ten times and then 200; tells the pauses between requests.
cat >"$folder/server.py" <<'PYTHON'
import http.server, json, sys, time

class Handler(http.server.BaseHTTPRequestHandler):
    seen = []

    def do_GET(self):
        self.seen.append(time.monotonic())
        if self.path == "/told":
            times = self.seen[:-1]
            body = {"requests": len(times), "pauses": [round(b - a, 1) for a, b in zip(times, times[1:])]}
            self.seen.clear()
            code = 200
        elif len(self.seen) <= 10:
            code, body = 429, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 429,
                               "reason": "TooManyRequests", "message": "storage is (re)initializing"}
        else:
            code, body = 200, {"major": "1", "minor": "36", "gitVersion": "v1.36.2", "gitCommit": "", "gitTreeState": "",
                               "buildDate": "", "goVersion": "", "compiler": "", "platform": ""}
        text = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass

server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
PYTHON
python3 "$folder/server.py" >"$folder/port" &
server=$!
until [ -s "$folder/port" ]; do sleep 0.1; done
url=http://127.0.0.1:$(cat "$folder/port")
told() { python3 -c 'import json,sys,urllib.request; t = json.load(urllib.request.urlopen(sys.argv[1] + "/told")); print(t["requests"], t["pauses"][-2:])' "$url"; }
cargo build --quiet --manifest-path "$folder/Cargo.toml"
default=$("$folder/target/debug/finding" "$url" on)
with=$(told)
off=$("$folder/target/debug/finding" "$url" off)
without=$(told)
echo "default: $default after $with (requests, last pauses in s)"
echo "off: $off after $without"
[ "$default" = ok ] && [ "${with%% *}" = 11 ] && [ "$off" = 429 ] && [ "${without%% *}" = 1 ]
