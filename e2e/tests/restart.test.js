// kill -9 of `dormouse dev`, and a new start on the same data directory.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { request } from '../support/client.js';
import { resource } from '../support/cluster.js';
import { needs } from '../support/command.js';
import { until } from '../support/deadline.js';
import { Instance, ownInstance } from '../support/instance.js';
import { SshHome } from '../support/openssh.js';
import { signIn } from '../support/web_session.js';

const instance = await ownInstance('restart');
const token = instance.token('alice');
const echo = instance.url('echo');

/** What must be the same after a restart. */
async function state() {
  const kids = async () => {
    const url = `${instance.ready.issuer.replace(/\/$/, '')}/.well-known/openid-configuration`;
    const { jwks_uri: keys } = (await request(instance, url)).json();
    return (await request(instance, keys)).json().keys.map(({ kid }) => kid).sort();
  };
  const uid = async ({ kind, name }) => [name, (await resource(instance, kind, name)).metadata.uid];
  return {
    keys: await kids(),
    workloads: await Promise.all(instance.ready.workloads.map(uid)),
    users: instance.ready.users.map(({ name, password }) => [name, password]),
    ca: instance.ca.toString(),
  };
}

test('after kill -9 nothing is left running, and all is there again', { timeout: 300_000 }, async (t) => {
  const lab = instance.workload('lab') && !needs('ssh').skip;
  const ssh = new SshHome(instance, { token });
  if (lab) {
    const written = await ssh.exec('echo still here > restart.txt', { within: 90_000 });
    assert.equal(written.code, 0, written.stderr);
  }
  await until('echo to answer', async () => (await request(instance, echo, { token, within: 65_000 })).status === 200);
  const before = await state();
  const running = instance.processes();
  assert.ok(running.length > 1, 'pods are processes');

  await instance.crash();
  await instance.nothingLeft(running);

  await instance.start();
  t.diagnostic(`ready again after ${instance.secondsToReady.toFixed(1)} s`);
  assert.deepEqual(await state(), before);

  await until('echo to answer the token of before', async () => {
    const { status, text } = await request(instance, echo, { token, within: 65_000 });
    if (status === 401) throw new Error(text);
    return status === 200;
  });
  const { page } = await signIn(instance, 'alice', echo);
  assert.equal(page.status, 200);
  if (lab) {
    const back = await ssh.exec('cat restart.txt', { strict: 'yes', within: 90_000 });
    assert.equal(back.stdout, 'still here\n', back.stderr);
  }
});

test('after Ctrl-C and a new start it is the same again', { timeout: 180_000 }, async () => {
  const before = await state();
  await instance.stop();
  await instance.start();
  assert.deepEqual(await state(), before);
});

test('a closed terminal stops it as Ctrl-C does', { timeout: 180_000 }, async () => {
  await instance.stop('SIGHUP');
  await instance.start();
});

test('Ctrl-C while it is starting leaves nothing behind', { timeout: 180_000 }, async () => {
  await instance.stop();
  const early = await Instance.create('interrupted');
  early.spawn();
  // A program of a pod runs, and the rest is on its way.
  const pod = ({ command }) => /dormouse echo|streamlit|jupyter/.test(command);
  await until('a pod to run', () => early.processes().some(pod), { within: 60_000, every: 20 });
  await early.stop();
  early.remove();
  await instance.start();
});
