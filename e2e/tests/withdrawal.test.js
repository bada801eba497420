// An operator takes a right away, and what is open by it ends: an answer, a WebSocket, an SSH session.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { after, before, test } from 'node:test';
import WebSocket from 'ws';

import { lookup, open, request } from '../support/client.js';
import { changeSpec } from '../support/cluster.js';
import { needs } from '../support/command.js';
import { until, withDeadline } from '../support/deadline.js';
import { sharedInstance } from '../support/instance.js';
import { SshHome } from '../support/openssh.js';

/** How long after the operator's command something may still be open. */
const CLOSED_WITHIN = 5_000;

const instance = await sharedInstance();
const workloads = ['echo', 'lab'].map((name) => instance.workload(name)).filter(Boolean);
const withSsh = instance.workload('lab') && !needs('ssh').skip;
if (!withSsh) console.log('# without SSH: there is no JupyterLab to reach, or no OpenSSH to reach it with');
const group = `guests-${randomBytes(4).toString('hex')}`;
const children = [];

/** `dormouse auth ...` on the instance's own database; fails when it fails. */
async function auth(order, flags, input) {
  const result = await instance.dormouse(['auth', ...order, '--data-dir', instance.dataDir, ...flags], { input });
  assert.equal(result.code, 0, result.stderr);
}

/** A person of the group, or one who is in none. */
async function person(name, groups = []) {
  const flags = ['--name', name, ...groups.flatMap((one) => ['--group', one])];
  await auth(['user', 'add'], flags, randomBytes(16).toString('hex'));
}

before(async () => {
  for (const workload of workloads) await changeSpec(instance, workload, { sharing: { groups: [group] } });
});

after(async () => {
  for (const child of children) child.kill('SIGKILL');
  for (const workload of workloads) await changeSpec(instance, workload, { sharing: { groups: [] } });
});

/** An answer that goes on: `{ ended }`, once its first piece is here. */
async function openAnswer(token) {
  const headers = { accept: 'text/event-stream' };
  const response = await open(instance, instance.url('echo', '/events'), { token, headers });
  assert.equal(response.statusCode, 200);
  const ended = new Promise((resolve) => {
    response.once('end', resolve).once('close', resolve).once('error', resolve);
  });
  await withDeadline('a first event', 30_000, new Promise((resolve) => response.once('data', resolve)));
  response.resume();
  return { ended };
}

/** A WebSocket that has carried a message. */
async function openSocket(token) {
  const url = instance.url('echo', '/ws').replace(/^https:/, 'wss:');
  const headers = { authorization: `Bearer ${token}` };
  const socket = new WebSocket(url, { ca: instance.ca, lookup, headers, perMessageDeflate: false });
  const ended = new Promise((resolve) => {
    socket.once('close', resolve);
  });
  const echoed = new Promise((resolve, reject) => {
    socket.once('open', () => socket.send('hello')).once('message', resolve).once('error', reject);
  });
  await withDeadline('an echoed message', 30_000, echoed);
  return { ended };
}

/** An SSH session whose command runs. */
async function openSsh(token) {
  const home = new SshHome(instance, { token });
  const child = spawn('ssh', [...home.sshArguments({ user: `lab.${instance.project}` }), 'echo begun; sleep 600'], {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...process.env, ...home.environment },
  });
  children.push(child);
  let said = '';
  child.stderr.on('data', (chunk) => {
    said += chunk;
  });
  const ended = new Promise((resolve) => {
    child.once('exit', resolve);
  });
  const begun = new Promise((resolve, reject) => {
    child.stdout.once('data', resolve);
    ended.then(() => reject(new Error(`ssh ended: ${said}`)));
  });
  await withDeadline('the command to begin', 90_000, begun);
  return { ended };
}

async function everythingOpen(token) {
  const reached = async () => (await request(instance, instance.url('echo'), { token })).status === 200;
  await until('the sharing to count', reached);
  const all = { answer: await openAnswer(token), socket: await openSocket(token) };
  if (withSsh) all.ssh = await openSsh(token);
  return all;
}

async function allEnd(all) {
  const ends = Object.entries(all).map(([what, { ended }]) => withDeadline(`the end of the ${what}`, CLOSED_WITHIN, ended));
  await Promise.all(ends);
}

test('a person who is disabled is out of what they had open', { timeout: 240_000 }, async () => {
  await person('carol', [group]);
  const token = await instance.issueToken('carol');
  const all = await everythingOpen(token);
  await auth(['user', 'disable'], ['--name', 'carol']);
  await allEnd(all);
  assert.equal((await request(instance, instance.url('echo'), { token })).status, 401);
});

test('so is a person who has left the group that let them in', { timeout: 240_000 }, async () => {
  await person('dave', [group]);
  const token = await instance.issueToken('dave');
  const all = await everythingOpen(token);
  await person('dave');
  await allEnd(all);
  assert.equal((await request(instance, instance.url('echo'), { token })).status, 401);
  // A new token says that they are in no group.
  const without = await instance.issueToken('dave');
  assert.equal((await request(instance, instance.url('echo'), { token: without })).status, 404);
});

test('so is everybody of a group with which a workload is no longer shared', { timeout: 240_000 }, async () => {
  await person('erin', [group]);
  const token = await instance.issueToken('erin');
  const all = await everythingOpen(token);
  for (const workload of workloads) await changeSpec(instance, workload, { sharing: { groups: [] } });
  await allEnd(all);
  assert.equal((await request(instance, instance.url('echo'), { token })).status, 404);
});
