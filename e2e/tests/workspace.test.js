// The life of a workspace that an operator makes: its volume, its state, its end.

import assert from 'node:assert/strict';
import { after, test } from 'node:test';

import { request } from '../support/client.js';
import { resource } from '../support/cluster.js';
import { needs } from '../support/command.js';
import { until } from '../support/deadline.js';
import { sharedInstance } from '../support/instance.js';
import { kubectl, kubectlOk, needsKubectl } from '../support/kubectl.js';
import { SshHome } from '../support/openssh.js';

const instance = await sharedInstance();
const token = instance.token('alice');
const alice = new SshHome(instance, { token });
const name = 'made-by-hand';
const { namespace } = (await resource(instance, 'App', 'echo')).metadata;

const ok = (...args) => kubectlOk(instance, ['-n', namespace, ...args]);

test('a workspace is made, stopped, started and deleted', { ...needs('ssh'), ...needsKubectl, timeout: 240_000 }, async () => {
  const remove = ['-n', namespace, 'delete', 'workspace', name, '--ignore-not-found', '--wait=false'];
  after(() => kubectl(instance, remove));
  // Echo serves in place of JupyterLab, so that it needs no Python.
  const { spec: echo } = await resource(instance, 'App', 'echo');
  const spec = { owner: 'alice', image: 'shell', command: echo.command, port: echo.port, protocol: 'Http' };
  const object = { apiVersion: 'dormouse.dev/v1alpha1', kind: 'Workspace', metadata: { name, namespace }, spec };
  await kubectlOk(instance, ['apply', '-f', '-'], JSON.stringify(object));

  const phase = async () => (await resource(instance, 'Workspace', name)).status?.phase;
  await until('it to run', async () => (await phase()) === 'Running', { within: 60_000 });
  const { status } = await resource(instance, 'Workspace', name);
  const page = await request(instance, status.url, { token, within: 65_000 });
  assert.equal(page.status, 200, page.text);
  const written = await alice.exec('echo mine > note.txt; pwd', { user: name });
  assert.equal(written.code, 0, written.stderr);

  await ok('scale', 'workspace', name, '--replicas=0');
  await until('it to be Stopped', async () => (await phase()) === 'Stopped');
  const stopped = await alice.exec('cat note.txt', { user: name });
  assert.notEqual(stopped.code, 0, 'a visit does not start what a person stopped');
  assert.equal(stopped.stderr.trim().split('\n').length, 1, stopped.stderr);
  assert.match(stopped.stderr, /stopped/);
  assert.equal((await request(instance, status.url, { token })).status, 503);

  await ok('scale', 'workspace', name, '--replicas=1');
  const back = await alice.exec('cat note.txt', { user: name, within: 90_000 });
  assert.equal(back.stdout, 'mine\n', back.stderr);

  await ok('delete', 'workspace', name);
  await until('all of it to be gone', async () => {
    const left = await ok('get', 'statefulsets,services,pods,persistentvolumeclaims,secrets', '-o', 'name');
    return !left.includes(name);
  }, { within: 60_000 });
  assert.equal((await request(instance, status.url, { token })).status, 404);
});
