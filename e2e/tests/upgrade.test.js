// Replacing a running proxy under load: ten times, and no request fails.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { copyFileSync, closeSync, linkSync, openSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import https from 'node:https';
import http from 'node:http';
import path from 'node:path';
import { after, test } from 'node:test';
import WebSocket from 'ws';

import { lookup } from '../support/client.js';
import { run } from '../support/command.js';
import { until, withDeadline } from '../support/deadline.js';
import { binary, environment, freePort, sharedInstance, temporaryFolder } from '../support/instance.js';

const UPGRADES = Number(process.env.DORMOUSE_E2E_HANDOVERS ?? 10);
const GRACE = 3_000;
const WORKERS = 6;

const instance = await sharedInstance();
const token = instance.token('alice');
const folder = temporaryFolder('upgrade');
const host = new URL(instance.url('echo')).hostname;
const [port, admin, issuerPort, issuerAdmin] = [await freePort(), await freePort(), await freePort(), await freePort()];
const url = `https://${host}:${port}/`;
const file = (name) => path.join(folder, name);
const log = file('proxy.log');
const program = file('dormouse');
const started = new Set();
let passed = false;

let versions = [];

/** Puts the other of two copies where the program is started from, in one step, as an upgrade does. */
function install() {
  if (versions.length === 0) {
    versions = [file('one'), file('two')];
    for (const version of versions) copyFileSync(binary, version);
  }
  versions.reverse();
  linkSync(versions[0], file('new'));
  renameSync(file('new'), program);
}

function begin(args, name) {
  const output = openSync(file(name), 'a');
  const child = spawn(program, args, { stdio: ['ignore', output, output], env: { ...process.env, ...environment() } });
  closeSync(output);
  started.add(child.pid);
  return child;
}

function isRunning(pid) {
  try {
    process.kill(pid, 0);
    // One that has ended and was not waited for is there as well.
    return !/^State:\s+Z/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'));
  } catch {
    return false;
  }
}

function ready(adminPort) {
  return new Promise((resolve) => {
    const asked = http.get({ host: '127.0.0.1', port: adminPort, path: '/readyz', agent: false }, (response) => {
      response.resume();
      resolve(response.statusCode === 200);
    });
    asked.on('error', () => resolve(false));
  });
}

/** What the proxies have logged, as objects. */
function logged() {
  const lines = readFileSync(log, 'utf8').split('\n').filter((line) => line.startsWith('{'));
  return lines.flatMap((line) => {
    try {
      return [JSON.parse(line)];
    } catch {
      return [];
    }
  });
}

function settings() {
  return `
listen = "127.0.0.1:${port}"
admin_listen = "127.0.0.1:${admin}"
kubeconfig = "${instance.ready.kubeconfig}"
audit_file = "${file('audit.jsonl')}"
[tls]
certificate_file = "${file('tls.crt')}"
key_file = "${file('tls.key')}"
[proxy]
base_domain = "localhost"
external_port = ${port}
issuer = "${instance.ready.issuer}"
issuer_internal_url = "http://127.0.0.1:${issuerPort}"
client_secret_file = "${path.join(instance.dataDir, 'gate-secret')}"
drain_grace = "${GRACE}ms"
`;
}

async function prepare() {
  install();
  const request = ['req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-days', '2', '-subj', `/CN=${host}`];
  request.push('-addext', `subjectAltName=DNS:${host}`, '-keyout', file('tls.key'), '-out', file('tls.crt'));
  const made = await run('openssl', request);
  assert.equal(made.code, 0, made.stderr);
  // The gateways' feed of revocations is for services alone, so a second authserver serves it here.
  const data = (name) => path.join(instance.dataDir, name);
  writeFileSync(
    file('authserver.toml'),
    `
listen = "127.0.0.1:${issuerPort}"
admin_listen = "127.0.0.1:${issuerAdmin}"
audit_file = "${file('authserver-audit.jsonl')}"
[authserver]
issuer = "${instance.ready.issuer}"
base_domain = "localhost"
database = "${data('authserver.db')}"
master_key_file = "${data('master-key')}"
client_secret_file = "${data('gate-secret')}"
`,
  );
  writeFileSync(file('proxy.toml'), settings());
  begin(['authserver', '--config', file('authserver.toml')], 'authserver.log');
  await until('the authserver to be ready', () => ready(issuerAdmin), { within: 60_000 });
  const proxy = begin(['proxy', '--config', file('proxy.toml')], 'proxy.log');
  await until('the proxy to be ready', () => ready(admin), { within: 60_000 });
  return proxy.pid;
}

after(() => {
  for (const pid of started) {
    try {
      process.kill(pid, 'SIGKILL');
    } catch {
      // It has ended.
    }
  }
  if (passed) rmSync(folder, { recursive: true, force: true });
});

/** Requests without end on connections that are kept; `Connection: close` is honoured. */
class Load {
  constructor(ca) {
    this.agent = new https.Agent({ keepAlive: true, maxSockets: WORKERS, ca, lookup });
    this.failures = [];
    this.requests = 0;
    this.connections = new Set();
    this.running = Array.from({ length: WORKERS }, (_, number) => this.work(number));
  }

  once(number) {
    const post = (this.requests + number) % 3 === 0;
    return new Promise((resolve, reject) => {
      const options = {
        agent: this.agent,
        method: post ? 'POST' : 'GET',
        headers: { authorization: `Bearer ${token}` },
        timeout: 20_000,
      };
      const request = https.request(url, options, (response) => {
        response.resume();
        response.on('end', () => resolve(response.statusCode));
        response.on('error', reject);
      });
      request.on('socket', ({ localPort }) => localPort && this.connections.add(localPort));
      request.on('timeout', () => request.destroy(new Error('no answer in 20 s')));
      request.on('error', reject);
      request.end(post ? 'x'.repeat(2_000) : undefined);
    });
  }

  async work(number) {
    while (!this.stopped) {
      const what = await this.once(number).catch((error) => error.message);
      this.requests += 1;
      if (what !== 200) this.failures.push(`request ${this.requests}: ${what}`);
    }
  }

  async stop() {
    this.stopped = true;
    await withDeadline('the load to end', 30_000, Promise.all(this.running));
    this.agent.destroy();
  }
}

/** A WebSocket that stays open: answers when and how it was closed. */
function hold(ca) {
  const socket = new WebSocket(`${url.replace('https', 'wss')}ws`, {
    ca,
    lookup,
    headers: { authorization: `Bearer ${token}` },
  });
  const opened = new Promise((resolve, reject) => {
    socket.once('open', resolve);
    socket.once('error', reject);
  });
  const closed = new Promise((resolve) => {
    socket.once('close', (code) => resolve({ code, at: Date.now() }));
  });
  return { opened: withDeadline('a WebSocket to open', 20_000, opened), closed };
}

/** SIGQUIT: answers the process that has taken over. */
async function handOver(pid) {
  const before = logged().length;
  process.kill(pid, 'SIGQUIT');
  const said = await until(
    'the new process to be ready',
    () => logged().slice(before).find(({ process: next, message }) => next && /new process is ready/.test(message)),
    { within: 70_000, every: 20 },
  );
  started.add(said.process);
  return { pid: said.process, at: Date.now() };
}

test(`${UPGRADES} upgrades under load: nothing fails, and WebSockets get their grace`, { timeout: 400_000 }, async (t) => {
  let pid = await prepare();
  const ca = readFileSync(file('tls.crt'));
  const load = new Load(ca);
  await until('some requests to be answered', () => load.requests > 20);
  for (let upgrade = 1; upgrade <= UPGRADES; upgrade += 1) {
    const socket = hold(ca);
    await socket.opened;
    install();
    const next = await handOver(pid);
    const { code, at } = await withDeadline('the WebSocket to close', GRACE + 10_000, socket.closed);
    assert.equal(code, 1001, `upgrade ${upgrade}`);
    assert.ok(at - next.at > GRACE - 500, `closed ${at - next.at} ms after the hand-over, before its grace was over`);
    await until('the old process to end', () => !isRunning(pid), { within: GRACE + 10_000, every: 50 });
    assert.deepEqual(load.failures, [], `upgrade ${upgrade}`);
    pid = next.pid;
  }

  // A new process that cannot start changes nothing.
  writeFileSync(file('proxy.toml'), `${settings()}\nnonsense = 1\n`);
  const before = logged().length;
  process.kill(pid, 'SIGQUIT');
  const refused = await until(
    'the failure to be logged',
    () => logged().slice(before).find(({ message }) => /not handed over/.test(message)),
    { within: 70_000, every: 20 },
  );
  assert.match(refused.error, /ended before it was ready/);
  const so = load.requests;
  await until('requests to be answered as before', () => load.requests > so + 20);

  await load.stop();
  t.diagnostic(`${load.requests} requests on ${load.connections.size} connections, ${load.failures.length} failed`);
  assert.deepEqual(load.failures, []);

  process.kill(pid, 'SIGTERM');
  await until('the last process to end', () => !isRunning(pid), { within: GRACE + 10_000, every: 50 });
  passed = true;
});
