#!/usr/bin/env python3
"""Writes recordings of traffic anew with only what the judge sees: scripts/reduce-traces.py OUT FILE...

Kept are: what the recording is of, requests but for repeated reads, messages of clients, and of
servers the few that a rule looks at. Left out are sizes, statuses, and everything else."""
import json
import pathlib
import re
import sys

FIELDS = {
    "http": ["method", "path", "q", "fetch", "msg_type"],
    "ws": ["conn", "dir", "opcode", "msg_type"],
    "wsopen": ["conn", "path", "sub"],
    "wsclose": ["conn"],
    "ssh": ["dir", "msg_type"],
    "act": [],
}
FROM_SERVER = ("header:PATCH-DOC", "$onFoundNewCandidates")


def name(text):
    """Names of files and addresses are nobody's business."""
    return re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}", "id", text)


def reduce(path):
    lines = [json.loads(line) for line in path.open()]
    meta = lines[0]
    keep = ["kind", "case", "app", "version", "label", "what", "window"]
    yield {key: meta[key] for key in keep if key in meta}
    reads = set()
    for event in lines[1:]:
        kind = event["kind"]
        if kind not in FIELDS or event["t"] > meta["window"][1]:
            continue
        said = event.get("msg_type")
        if kind == "ws":
            if event["opcode"] not in (1, 2):
                continue
            if event["dir"] == "s2c" and not any(word in str(said) for word in FROM_SERVER):
                continue
        if kind == "http" and event["method"] == "GET" and not event.get("fetch", "").startswith("navigate"):
            read = event["path"], event.get("q", "")
            if read in reads:
                continue
            reads.add(read)
        if isinstance(said, str):
            event["msg_type"] = name(said)[:400]
        kept = {key: event[key] for key in FIELDS[kind] if event.get(key) not in (None, "")}
        yield {"t": event["t"], "kind": kind} | kept


out = pathlib.Path(sys.argv[1])
for file in map(pathlib.Path, sys.argv[2:]):
    with (out / file.name).open("w") as to:
        for line in reduce(file):
            to.write(json.dumps(line, separators=(",", ":")) + "\n")
