// Replacing a running proxy under load: ten times, and no request fails.

import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import https from 'node:https';
import { after, test } from 'node:test';
import WebSocket from 'ws';

import { lookup } from '../support/client.js';
import { until, withDeadline } from '../support/deadline.js';
import { freePort, sharedInstance } from '../support/instance.js';
import { Services } from '../support/service.js';

const UPGRADES = Number(process.env.DORMOUSE_E2E_HANDOVERS ?? 10);
const GRACE = 3_000;
const WORKERS = 6;

const instance = await sharedInstance();
const token = instance.token('alice');
const services = new Services(instance, 'upgrade');
const host = new URL(instance.url('echo')).hostname;
const [port, admin] = [await freePort(), await freePort()];
const url = `https://${host}:${port}/`;
const file = (name) => services.file(name);
let passed = false;
after(() => services.remove(passed));

/** Starts the proxy; answers its process and its settings. */
async function prepare() {
  const all = await services.proxySettings({ host, port, admin, grace: GRACE });
  return { first: await services.start('proxy', admin, all), all };
}

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

test(`attack_26: ${UPGRADES} upgrades under load: nothing fails, and WebSockets get their grace`, { timeout: 400_000 }, async (t) => {
  const { first, all } = await prepare();
  let pid = first;
  const ca = readFileSync(file('tls.crt'));
  const load = new Load(ca);
  await until('some requests to be answered', () => load.requests > 20);
  for (let upgrade = 1; upgrade <= UPGRADES; upgrade += 1) {
    const socket = hold(ca);
    await socket.opened;
    const next = await services.handOver('proxy', pid);
    const { code, at } = await withDeadline('the WebSocket to close', GRACE + 10_000, socket.closed);
    // "Service restart": after 1000 or 1001 a notebook would not connect its kernel again.
    assert.equal(code, 1012, `upgrade ${upgrade}`);
    assert.ok(at - next.at > GRACE - 500, `closed ${at - next.at} ms after the hand-over, before its grace was over`);
    await services.ended(pid, GRACE + 10_000);
    assert.deepEqual(load.failures, [], `upgrade ${upgrade}`);
    pid = next.pid;
  }

  // A new process that cannot start changes nothing.
  writeFileSync(file('proxy.toml'), `${all}\nnonsense = 1\n`);
  const refused = await services.quit('proxy', pid, ({ message }) => /not handed over/.test(message));
  assert.match(refused.error, /ended before it was ready/);
  const so = load.requests;
  await until('requests to be answered as before', () => load.requests > so + 20);

  await load.stop();
  t.diagnostic(`${load.requests} requests on ${load.connections.size} connections, ${load.failures.length} failed`);
  assert.deepEqual(load.failures, []);

  await services.stop(pid, GRACE + 10_000);
  passed = true;
});
